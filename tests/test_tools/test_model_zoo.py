"""Every config is listed; figures are those of the counter, of the evidence, and of published weights."""

import json
from pathlib import Path

import pytest
import torch
from modelindex.load_model_index import load

from mmvisiongru.checkpoint import load_checkpoint_file
from tests.harness.config_builders import NEEDS_MMDET
from tools import test as test_tool
from tools.misc import publish_weights
from tools.misc import update_model_zoo as zoo


def test_openmmlab_reads_the_index_and_finds_every_config():
    models = load(str(zoo.ROOT / 'model-index.yml'))
    models.build_models_with_collections()
    configs = [path for path in (zoo.ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts]
    assert {model.name for model in models.models} == {path.stem for path in configs}


@pytest.mark.parametrize(
    'folder', [pytest.param(f, marks=NEEDS_MMDET if f == 'detection' else ()) for f in zoo.FOLDERS]
)
def test_metafile_and_readme_are_up_to_date(folder):
    """If this fails: python tools/misc/update_model_zoo.py."""
    updated = zoo.update(folder)
    assert updated == {path: path.read_text() for path in updated} != {}


def evidence(folder, name, options, values):
    folder.mkdir(parents=True)
    (folder / 'configs.csv').write_text(f'config,fingerprint,options\n{name},x,{options}\n')
    rows = [f'{name},{seed},{value}' for seed, value in enumerate(values)]
    (folder / 'results.csv').write_text('\n'.join(['config,seed,value', *rows, 'other,0,1.0', '']))


def test_figures_trained_here_are_means_of_the_evidence(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, 'ROOT', tmp_path)
    monkeypatch.setattr(zoo, 'counted', lambda config: {'FLOPs': 1})
    # With a smaller budget, which is another experiment.
    evidence(tmp_path / 'experiments/evidence/a', 'x', 'train_cfg.max_iters=3', [1.0])
    evidence(tmp_path / 'experiments/evidence/b', 'x', '', [40.0, 41.0])
    results = [{'Metrics': {'mIoU': 12.0, 'mask AP': 3}}, {'Metrics': {'mIoU (paper)': 44.7}}]
    (entry,) = zoo.update_entries([{'Name': 'x', 'Config': 'x.py', 'Results': results}], ['x.py'], [])
    assert [r['Metrics'] for r in entry['Results']] == [{'mIoU': 40.5, 'mask AP': 3}, {'mIoU (paper)': 44.7}]


def test_weights_are_published_as_they_were_tested(segmentor, monkeypatch, refused):
    folder = Path('weights').absolute()
    monkeypatch.setattr(publish_weights, 'FOLDER', folder)
    options = ('tiny', '--commit', 'abc', '--terms', 'free')
    folder.mkdir()
    (folder / 'tiny-01234567.pth').touch()
    publish_weights.main([segmentor, 'fits.pth', *options])
    # In place of the older one.
    (path,) = folder.glob('*.pth')
    trained, published = torch.load('fits.pth'), load_checkpoint_file(str(path))
    assert path.name == f'tiny-{published["meta"]["sha256"][:8]}.pth'
    for name, value in published['state_dict'].items():
        wanted = trained['state_dict'][name]
        # Statistics of batch norm keep their precision.
        kept = 'running_' in name or not wanted.is_floating_point()
        assert torch.equal(value, wanted if kept else wanted.half()), name
    # The visualizer of the first run would write into its folder, which is gone.
    test_tool.main([
        segmentor, str(path), '--out', 'tested.json', '--out-item', 'metrics',
        '--cfg-options', 'visualizer.name=tested',
    ])  # fmt: skip
    found, size = json.loads(Path('tested.json').read_text())['mIoU'], path.stat().st_size / 1e6
    assert published['meta']['metric'] == dict(mIoU=round(found, 2))
    assert f'| `tiny` | `tiny` | {found:.2f} mIoU | {size:.1f} | free |' in (folder / 'README.md').read_text()
    monkeypatch.setattr(publish_weights, 'measure', lambda *_: ({'coco/bbox_mAP': 0.5}, {}))
    assert 'tested by coco/bbox_mAP' in refused(publish_weights, segmentor, 'fits.pth', *options)
    trained['state_dict']['decode_head.conv_seg.bias'][0] = 1e5
    torch.save(trained, 'fits.pth')
    assert 'decode_head.conv_seg.bias' in refused(publish_weights, segmentor, 'fits.pth', *options)
