"""The package in a program of one's own: the snippets of docs/python.md, names of configs, bad input."""

import re
import shutil

import mmpretrain
import mmseg.apis
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmvisiongru import VisionGRU, files
from mmvisiongru.apis import get_config, get_model, list_configs
from mmvisiongru.errors import InputError
from tests.harness import ROOT

PAGE = (ROOT / 'docs/python.md').read_text()
PICO = 'visiongru-pico_1xb64_digits'


def test_snippets_run_and_say_the_right_sizes():
    values = {}
    for snippet in re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL):
        # Each by itself: none may need the imports of another.
        exec(compile(snippet, 'docs/python.md', 'exec'), own := {})
        values |= own
    assert [tuple(m.shape[2:]) for m in values['maps']] == [(30, 40), (15, 20), (8, 10), (4, 5)]
    for name in ('h', 'features'):
        assert str(tuple(values[name].shape)) == re.search(rf'\b{name}[,)]* = .*# (\(.*?\))', PAGE)[1]
    assert values['cfg'].train_cfg.max_epochs == 100
    assert 'visiongru-tiny_8xb128_in1k' in values['names']
    assert {'pred_label', 'pred_score', 'pred_scores'} <= set(values['result'])


def test_names_are_filtered():
    names = list_configs()
    assert PICO in names
    assert list_configs('*_upernet_*ade20k*') == [n for n in names if '_upernet_' in n and 'ade20k' in n]


def test_an_installed_package_has_its_own_configs(monkeypatch, tmp_path):
    package = tmp_path / 'site-packages' / 'mmvisiongru'
    monkeypatch.setattr(files, 'PACKAGE', package)
    with pytest.raises(InputError, match='install mmvisiongru again'):
        list_configs()
    shutil.copytree(ROOT / 'configs', package / '.mim' / 'configs')
    assert str(get_config(PICO).filename).startswith(str(tmp_path))
    assert get_config(PICO).model.backbone.arch == 'pico'


@pytest.mark.parametrize(('more', 'error'), [(dict(dtype=torch.bfloat16), 0.02), (dict(optimize=True), 2e-6)])
def test_fast_model_of_images_of_float32_gives_the_same_maps(more, error):
    torch.manual_seed(0)
    model, x = get_model('mmvisiongru.VisionGRU:pico'), torch.randn(1, 3, 40, 32)
    fast = get_model('mmvisiongru.VisionGRU:pico', **more)
    assert (type(fast.stem) is type(model.stem)) is ('optimize' not in more)
    fast.load_state_dict(model.state_dict())
    with torch.no_grad():
        for a, b in zip(model(x), fast(x), strict=True):
            assert b.dtype == more.get('dtype', torch.float32)
            assert (a - b.float()).square().mean().sqrt() < error * a.square().mean().sqrt()
    # 16 bits would round it.
    assert get_model(PICO, **more).data_preprocessor.mean.dtype == torch.float32


@pytest.fixture
def trained(tmp_path):
    """A classifier and its checkpoint."""
    classifier = get_model(PICO)
    meta = dict(dataset_meta=dict(classes=tuple('abcdefghij')))
    torch.save(dict(state_dict=classifier.state_dict(), meta=meta), tmp_path / 'x.pth')
    return classifier, str(tmp_path / 'x.pth')


def test_a_backbone_of_mmpretrain_and_a_class():
    assert not get_model('mmpretrain.ConvNeXt:atto', optimize=True).training
    backbone = get_model(Config(dict(model=dict(type=VisionGRU, arch='pico', scan_backend='torch'))))
    assert (type(backbone), backbone.stages[0].blocks[0].mixer.backend) == (VisionGRU, 'torch')


def test_weights_are_those_of_the_file_for_a_backbone_too(trained):
    classifier, path = trained
    again, backbone = get_model(PICO, path), get_model('mmvisiongru.VisionGRU:pico', path)
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(again(x), classifier(x), rtol=0, atol=0)
    torch.testing.assert_close(backbone(x)[-1], classifier.backbone(x)[-1], rtol=0, atol=0)
    assert again.dataset_meta['classes'] == tuple('abcdefghij')


def test_inference_model_of_mmpretrain_takes_it(trained):
    classifier, path = trained
    image = np.random.default_rng(0).integers(0, 256, (40, 32, 3), np.uint8)
    found = mmpretrain.inference_model(get_model(PICO, path), image)
    sample = dict(inputs=torch.from_numpy(image).permute(2, 0, 1)[None])
    with torch.no_grad():
        scores = classifier(classifier.data_preprocessor(sample)['inputs']).softmax(1)[0]
    np.testing.assert_allclose(found['pred_scores'], scores, rtol=1e-5)
    assert found['pred_class'] == 'abcdefghij'[int(scores.argmax())]


def test_inference_model_of_mmseg_takes_it():
    torch.manual_seed(0)
    model = get_model('visiongru-pico_upernet_1xb12-1k_digits-64x64')
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    labels = mmseg.apis.inference_model(model, image).pred_sem_seg.data[0]
    sample = dict(inputs=[torch.from_numpy(image).permute(2, 0, 1)])
    with torch.no_grad():
        maps = model.extract_feat(model.data_preprocessor(sample)['inputs'])
        logits = model.decode_head(maps)
    logits = torch.nn.functional.interpolate(logits, (64, 64), mode='bilinear')
    assert (labels == logits.argmax(1)[0]).float().mean() > 0.99
    assert len(model.dataset_meta['classes']) == len(model.dataset_meta['palette']) == 11


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: get_config('alexnet'), 'list_configs() lists them'),
        (lambda: get_config(PICO, dict(modle=1)), "did you mean 'model'?"),
        (lambda: get_model('mmvisiongru.VisionGRU:tinny'), 'tinny'),
        (lambda: get_model(Config(dict(model=dict(type='mmvisiongru.VisionGRU', archh='pico')))), 'archh'),
        (lambda: get_model('visiongru-pico_digits'), 'pretrained=True'),
        (lambda: get_model(PICO, 'nowhere.pth'), 'nowhere.pth does not exist'),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        call()
    assert '\n' not in str(error.value)
