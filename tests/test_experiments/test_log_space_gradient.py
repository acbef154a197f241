"""The experiment with a scan in log space: it is the same function, and both are compared with float64."""

import json
import multiprocessing

import pytest
import torch
from PIL import Image

from experiments import log_space_gradient
from mmvisiongru.models import VisionGRU
from mmvisiongru.models.layers import MinGRU2D
from tests.harness.small_runs import SEGMENTATION, make_scenes, write_config

ALL = ('row', 'row_reverse', 'column', 'column_reverse')


@pytest.mark.parametrize('paths', [('row',), ('row_reverse',), ALL])
def test_mixer_in_log_space_is_the_mixer(paths):
    torch.manual_seed(0)
    mixer = MinGRU2D(6, paths=paths, backend='reference').double()
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    cotangent = torch.randn_like(x)
    found = {}
    for scan in log_space_gradient.SCANS:
        log_space_gradient.use_scan(mixer, scan)
        mixer.zero_grad()
        out = mixer(x)
        out.backward(cotangent)
        found[scan] = [out.detach(), *(p.grad.clone() for p in mixer.parameters())]
    for linear, log in zip(found['linear'], found['log'], strict=True):
        torch.testing.assert_close(log, linear, rtol=1e-10, atol=1e-12)
    # Another computation, so another rounding.
    assert not torch.equal(found['log'][0], found['linear'][0])


def test_candidate_that_may_be_negative_is_refused():
    with pytest.raises(ValueError, match="got 'linear'"):
        log_space_gradient.use_scan(MinGRU2D(4, candidate='linear'), 'log')


class Loss(torch.nn.Module):
    """The interface that the experiment needs of a model."""

    def __init__(self):
        super().__init__()
        self.backbone = VisionGRU(arch=dict(embed_dims=[8, 16], depths=[1, 1]), out_indices=(0, 1))
        self.dropout = torch.nn.Dropout(0.5)

    def data_preprocessor(self, batch, training):
        return batch

    def loss(self, x, weights):
        outs = self.backbone(x)
        return dict(loss=sum((w * self.dropout(out)).mean() for w, out in zip(weights, outs, strict=True)))


def test_errors_are_against_float64_and_the_model_does_not_change():
    torch.manual_seed(0)
    model = Loss()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batch = dict(inputs=torch.randn(1, 3, 32, 32), data_samples=[1.0, 2.0])
    rows = log_space_gradient.compare_gradients(model, batch)
    assert list(rows) == ['stage 1', 'stage 2']
    for row in rows.values():
        assert 0.9999 < row['cosine'] <= 1 + 1e-12
        assert 0 < row['error_linear'] < 1e-4
        assert 0 < row['error_log'] < 1e-2
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_both_are_trained_from_one_seed_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # Imports take most of the time of a process.
    server = multiprocessing.get_context('forkserver')
    server.set_forkserver_preload(['mmvisiongru', 'mmseg.models', 'mmengine.runner'])
    monkeypatch.setattr(log_space_gradient, 'get_context', lambda _: server)
    make_scenes(tmp_path / 'data')
    text = SEGMENTATION.replace('persistent_workers=True,', '')
    config = write_config(tmp_path / 'run.py', text, tmp_path / 'data')
    call = [str(config), '--seeds', '3', '--interval', '1', '--out', 'out']
    call += ['--cfg-options', 'model.data_preprocessor.size=(32,32)']
    log_space_gradient.main(call)
    assert capsys.readouterr().out.count('seed 3: mIoU') == 2
    linear, log = json.loads((tmp_path / 'out/results.json').read_text())['runs']
    assert list(linear['gradients']) == ['0', '1']
    # One seed: the same weights and the same batch.
    assert linear['gradients']['0'] == log['gradients']['0']
    assert linear['loss'][0][1] == pytest.approx(log['loss'][0][1], rel=1e-5)
    page = (tmp_path / 'out/README.md').read_text()
    assert '| log | 1 |' in page
    assert f'| log - linear | 1 | {log["value"] - linear["value"]:.4g} ' in page
    with Image.open(tmp_path / 'out/results.png') as picture:
        assert len(picture.convert('RGB').getcolors(1 << 20)) > 10
    log_space_gradient.main(call)
    assert not capsys.readouterr().out
