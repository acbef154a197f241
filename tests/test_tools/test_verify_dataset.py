"""tools/misc/verify_dataset.py finds what a run would trip over."""

import json
import runpy

import numpy as np
import pytest
from PIL import Image

from tests.harness import ROOT

MAIN = runpy.run_path(str(ROOT / 'tools/misc/verify_dataset.py'))['main']

CONFIG = """
default_scope = 'mmseg'
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
    dict(type='RandomCrop', crop_size=(8, 8)), dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(type='RepeatDataset', times=1, dataset=dict(
    type='BaseSegDataset', data_root='{root}', pipeline=pipeline, metainfo=dict(classes=('a', 'b')),
    data_prefix=dict(img_path='img', seg_map_path='map'),
)))
val_dataloader = dict(dataset=train_dataloader['dataset']['dataset'])
test_dataloader = val_dataloader
"""


@pytest.fixture
def config(tmp_path):
    for kind, shape in (('img', (16, 16, 3)), ('map', (16, 16))):
        (tmp_path / kind).mkdir()
        for i in range(10):
            suffix = 'jpg' if kind == 'img' else 'png'
            Image.fromarray(np.ones(shape, 'uint8')).save(tmp_path / kind / f'{i}.{suffix}')
    path = tmp_path / 'config.py'
    path.write_text(CONFIG.format(root=tmp_path))
    return path


def test_whole_data_set(config, capsys):
    assert MAIN([str(config)]) == 0
    out = capsys.readouterr().out.splitlines()
    # The two in front are the same data, in another wrapper; test is val.
    assert out == [f'{name}_dataloader: 0 of 10 samples cannot be used' for name in ('train', 'val')]


@pytest.mark.parametrize('workers', ['0', '2'])
def test_broken_files_are_listed(config, capsys, workers):
    root = config.parent
    (root / 'img/3.jpg').write_bytes((root / 'img/3.jpg').read_bytes()[:200])
    spot = np.ones((16, 16), 'uint8')
    # Where a crop may miss it.
    spot[15, 15] = 7
    Image.fromarray(spot).save(root / 'map/8.png')
    args = ['--dataloaders', 'train_dataloader', '--workers', workers, '--out', str(root / 'report.json')]
    assert MAIN([str(config), *args]) == 1
    captured = capsys.readouterr()
    # No bar where there is no terminal.
    assert captured.err == ''
    head, *faults = captured.out.splitlines()
    assert head == 'train_dataloader: 2 of 10 samples cannot be used'
    assert faults[0].endswith(f'{root}/img/3.jpg is cut short')
    assert faults[1].endswith(f'{root}/map/8.png holds the label 7; there are 2 classes, from 0')
    report = json.loads((root / 'report.json').read_text())
    assert report == {'train_dataloader': dict(samples=10, faults=faults)}


def test_config_without_data(tmp_path, capsys):
    (tmp_path / 'a.py').write_text('model = dict()\n')
    with pytest.raises(SystemExit, match='2'):
        MAIN([str(tmp_path / 'a.py')])
    assert 'has none of the dataloaders to verify' in capsys.readouterr().err
