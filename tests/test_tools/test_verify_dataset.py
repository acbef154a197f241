"""tools/misc/verify_dataset.py finds what a run would trip over, and what would spoil it without a word."""

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
FOLDERS = """
default_scope = 'mmpretrain'
train_dataloader = dict(dataset=dict(
    type='CustomDataset', data_root='{root}',
    pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
))
data_preprocessor = dict(num_classes=2)
"""


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)


def orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.fixture
def config(tmp_path):
    for i in range(10):
        save(tmp_path / f'img/{i}.jpg', np.ones((16, 16, 3)))
        save(tmp_path / f'map/{i}.png', np.eye(16))
    path = tmp_path / 'config.py'
    path.write_text(CONFIG.format(root=tmp_path))
    return path


def verify(config, capsys, *args):
    """Exit code and lines for the training data."""
    code = MAIN([str(config), '--dataloaders', 'train_dataloader', *args])
    return code, capsys.readouterr().out.splitlines()


def test_good_data_set(config, capsys):
    assert MAIN([str(config)]) == 0
    out = capsys.readouterr().out.splitlines()
    # The two in front are the same data, in another wrapper; test is val.
    assert out == [f'{name}_dataloader: 0 of 10 samples cannot be used' for name in ('train', 'val')]


@pytest.mark.parametrize('workers', ['0', '2'])
def test_broken_files_are_listed(config, capsys, workers):
    root = config.parent
    (root / 'img/3.jpg').write_bytes((root / 'img/3.jpg').read_bytes()[:200])
    spot = np.ones((16, 16))
    # Where a crop may miss it.
    spot[15, 15] = 7
    save(root / 'map/8.png', spot)
    assert MAIN([str(config), '--dataloaders', 'train_dataloader', '--workers', workers,
                 '--out', str(root / 'report.json')]) == 1  # fmt: skip
    captured = capsys.readouterr()
    # No bar where there is no terminal.
    assert captured.err == ''
    head, *faults = captured.out.splitlines()
    assert head == 'train_dataloader: 2 of 10 samples cannot be used'
    assert f'{root}/img/3.jpg' in faults[0]
    assert f'{root}/map/8.png' in faults[1]
    assert 'label 7' in faults[1]
    report = json.loads((root / 'report.json').read_text())
    assert report == {'train_dataloader': dict(samples=10, faults=faults, notes=[])}


def test_classes_without_a_pixel_are_named(config, capsys):
    """Masks of 0 and 255: the second class is ignored, and 100 mIoU reached at once."""
    for i in range(10):
        save(config.parent / f'map/{i}.png', 255 * np.eye(16))
    code, out = verify(config, capsys)
    assert code == 0
    assert '1 of 2 classes' in out[1]
    assert 'b (1)' in out[1]
    assert 'a (0)' not in out[1]


def test_pictures_that_are_not_taken_are_listed(config, capsys):
    for name in ('11.JPG', 'more/12.png'):
        save(config.parent / 'img' / name, np.ones((16, 16, 3)))
    code, out = verify(config, capsys)
    assert (code, out[0]) == (0, 'train_dataloader: 0 of 10 samples cannot be used')
    assert all(name in out[1] for name in ('11.JPG', 'more/12.png', '.jpg'))


def test_a_suffix_that_matches_nothing(config, capsys):
    code, out = verify(config, capsys, '--cfg-options', 'train_dataloader.dataset.dataset.img_suffix=.JPEG')
    assert code == 1
    assert ' 0 of 0 samples' in out[0]
    assert '10 pictures' in out[1]


@pytest.mark.parametrize(
    ('text', 'words'),
    [('0\n\n1\n', 'blank line 2'), ('\ufeff0\n1\n', 'byte order mark'), ('0\n1\n', None)],
)
def test_lists_of_samples(config, capsys, text, words):
    (config.parent / 'list.txt').write_text(text, encoding='utf-8')
    option = ['--cfg-options', 'train_dataloader.dataset.dataset.ann_file=list.txt']
    if words is None:
        assert verify(config, capsys, *option) == (0, ['train_dataloader: 0 of 2 samples cannot be used'])
        return
    with pytest.raises(SystemExit, match='2'):
        verify(config, capsys, *option)
    err = capsys.readouterr().err
    assert words in err
    assert 'list.txt' in err


def test_labels_of_turned_images(config, capsys):
    """Decoders turn an image as its EXIF orientation says; a label of the stored pixels does not fit."""
    root = config.parent
    save(root / 'img/1.jpg', np.ones((16, 20, 3)), exif=orientation(6))
    save(root / 'map/1.png', np.ones((16, 20)))
    save(root / 'img/2.jpg', np.ones((16, 20, 3)), exif=orientation(6))
    save(root / 'map/2.png', np.ones((20, 16)))
    # Sizes do not show these.
    save(root / 'img/3.jpg', np.ones((16, 16, 3)), exif=orientation(6))
    save(root / 'img/4.jpg', np.ones((16, 16, 3)), exif=orientation(3))
    code, (head, fault, note) = verify(config, capsys)
    assert (code, head) == (1, 'train_dataloader: 1 of 10 samples cannot be used')
    assert 'map/1.png has (20, 16) pixels, its image (16, 20)' in fault
    assert 'EXIF' in fault
    assert all(f'img/{i}.jpg' in note for i in (3, 4))
    assert all(f'img/{i}.jpg' not in note for i in (1, 2))
    # A loader that leaves images as they are stored.
    config.write_text(
        config.read_text().replace("ImageFromFile'", "ImageFromFile', color_type='color_ignore_orientation'")
    )
    _, (head, fault, *_) = verify(config, capsys)
    assert head.startswith('train_dataloader: 1 of')
    assert 'map/2.png has' in fault


def test_a_hidden_folder_is_no_class(tmp_path, capsys):
    """Jupyter leaves .ipynb_checkpoints, which would be class 0 and shift the others."""
    for name in ('ant', 'bee', '.ipynb_checkpoints'):
        save(tmp_path / f'data/{name}/0.png', np.ones((8, 8, 3)))
    (tmp_path / 'config.py').write_text(FOLDERS.format(root=tmp_path / 'data'))
    with pytest.raises(SystemExit, match='2'):
        MAIN([str(tmp_path / 'config.py')])
    err = capsys.readouterr().err
    assert '.ipynb_checkpoints' in err
    # Not what would let a run begin with it as a class.
    assert 'num_classes=3' not in err


def test_config_without_data(tmp_path, capsys):
    (tmp_path / 'a.py').write_text('model = dict()\n')
    with pytest.raises(SystemExit, match='2'):
        MAIN([str(tmp_path / 'a.py')])
    assert 'has none of the dataloaders to verify' in capsys.readouterr().err
