"""tools/misc/verify_dataset.py finds what a run would trip over, and what would spoil it without a word."""

import json
import os
import resource

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile, RandomFlip
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from PIL import Image

from tests.harness.small_runs import save
from tools.misc import verify_dataset

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
MODEL = """
backbone = dict(type='mmvisiongru.VisionGRU', arch=dict(embed_dims=[8], depths=[1]), out_indices=(0,))
head = dict(type='FCNHead', in_channels=8, channels=8, num_classes=3, align_corners=False)
model = dict(type='EncoderDecoder', backbone=backbone, decode_head=head, test_cfg=dict(mode='whole'))
"""
IMAGE = np.ones((16, 16, 3))


@pytest.fixture
def root(here):
    """A working folder with a config and ten samples."""
    for i in range(10):
        save(f'img/{i}.jpg', IMAGE)
        save(f'map/{i}.png', np.eye(16))
    (here / 'config.py').write_text(CONFIG.format(root=here))
    return here


def verify(capsys, *args):
    """Exit code and lines for the training data."""
    code = verify_dataset.main(['config.py', '--dataloaders', 'train_dataloader', *args])
    return code, capsys.readouterr().out.splitlines()


def test_good_data_set(root, capsys):
    assert verify_dataset.main(['config.py']) == 0
    out = capsys.readouterr().out.splitlines()
    # The two in front are the same data, in another wrapper; test is val.
    assert out == [f'{name}_dataloader: 0 of 10 samples cannot be used' for name in ('train', 'val')]


@pytest.mark.parametrize('workers', ['0', '2'])
def test_broken_files_are_listed(root, capfd, workers):
    (root / 'img/3.jpg').write_bytes((root / 'img/3.jpg').read_bytes()[:200])
    spot = np.ones((16, 16))
    # Where a crop may miss it.
    spot[15, 15] = 7
    save('map/8.png', spot)
    code, (head, *faults) = verify(capfd, '--workers', workers, '--out', 'report.json')
    assert (code, head) == (1, 'train_dataloader: 2 of 10 samples cannot be used')
    assert f'{root}/img/3.jpg' in faults[0]
    assert f'{root}/map/8.png' in faults[1]
    assert 'label 7' in faults[1]
    report = json.loads((root / 'report.json').read_text())
    assert report == {'train_dataloader': dict(samples=10, faults=faults, notes=[])}


def test_no_sample_keeps_a_file_open(root, capsys, request):
    """As each tensor of a worker does: 200 would exceed the limit."""
    limits, most = resource.getrlimit(resource.RLIMIT_NOFILE), len(os.listdir('/proc/self/fd')) + 100
    request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits))
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
    times = 'train_dataloader.dataset.times=20'
    assert verify(capsys, '--workers', '1', '--cfg-options', times)[0] == 0


def test_classes_without_a_pixel_are_named(root, capsys):
    """Masks of 0 and 255: the second class is ignored, and 100 mIoU reached at once."""
    for i in range(10):
        save(f'map/{i}.png', 255 * np.eye(16))
    code, (_, note) = verify(capsys)
    assert code == 0
    assert ('1 of 2 classes' in note, 'a (0)' in note, 'b (1)' in note) == (True, False, True)
    # Nothing to learn from is a fault in training alone.
    save('map/8.png', 255 * np.ones((16, 16)))
    assert verify(capsys)[0] == 1
    assert verify_dataset.main(['config.py', '--dataloaders', 'val_dataloader']) == 0


def test_pictures_that_are_not_taken_are_listed(root, capsys):
    for name in ('11.JPG', 'more/12.png'):
        save(f'img/{name}', IMAGE)
    code, (head, note) = verify(capsys)
    assert (code, head) == (0, 'train_dataloader: 0 of 10 samples cannot be used')
    assert all(name in note for name in ('11.JPG', 'more/12.png', '.jpg'))


def test_a_suffix_that_matches_nothing(root, capsys):
    option = ['--cfg-options', 'train_dataloader.dataset.dataset.img_suffix=.JPEG']
    code, (head, note) = verify(capsys, *option)
    assert (code, ' 0 of 0 samples' in head, '10 pictures' in note) == (1, True, True)


@pytest.mark.parametrize(
    ('text', 'words'),
    [('0\n\n1\n', 'blank line 2'), ('\ufeff0\n1\n', 'byte order mark'), ('0\n1\n', None)],
)
def test_lists_of_samples(root, capsys, refused, text, words):
    (root / 'list.txt').write_text(text, encoding='utf-8')
    option = ['--cfg-options', 'train_dataloader.dataset.dataset.ann_file=list.txt']
    if words is None:
        assert verify(capsys, *option) == (0, ['train_dataloader: 0 of 2 samples cannot be used'])
        return
    line = refused(verify_dataset, 'config.py', *option)
    assert (words in line, 'list.txt' in line) == (True, True)


def test_labels_of_turned_images(root, capsys):
    """Decoders turn an image as its EXIF orientation says; a label of the stored pixels does not fit."""
    wide = np.ones((16, 20, 3))
    # Sizes do not show the last two.
    for i, (image, orientation) in enumerate([(wide, 6), (wide, 6), (IMAGE, 6), (IMAGE, 3)], 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(f'img/{i}.jpg', image, exif=exif)
    save('map/1.png', np.ones((16, 20)))
    save('map/2.png', np.ones((20, 16)))
    code, (head, fault, note) = verify(capsys)
    assert (code, head) == (1, 'train_dataloader: 1 of 10 samples cannot be used')
    assert 'map/1.png has (20, 16) pixels, its image (16, 20)' in fault
    assert 'EXIF' in fault
    assert all(f'img/{i}.jpg' in note for i in (3, 4))
    assert all(f'img/{i}.jpg' not in note for i in (1, 2))
    # A loader that leaves images as they are stored.
    loader = 'train_dataloader.dataset.dataset.pipeline.0'
    _, (head, fault, *_) = verify(capsys, '--cfg-options', f'{loader}.color_type=color_ignore_orientation')
    assert head.startswith('train_dataloader: 1 of')
    assert 'map/2.png has' in fault


@pytest.mark.parametrize(
    ('setting', 'named'),
    [
        ("val_dataloader = dict(dataset=dict(metainfo=dict(classes=('a', 'c'))))", 'b, c'),
        ("val_dataloader = dict(dataset=dict(metainfo=dict(classes=('b', 'a'))))", 'order'),
        (MODEL, 'decode_head.num_classes=2'),
    ],
)
def test_classes_that_a_training_refuses(root, refused, setting, named):
    (root / 'own.py').write_text(f"_base_ = 'config.py'\n{setting}\n")
    assert named in refused(verify_dataset, 'own.py')


def test_a_hidden_folder_is_no_class(classifier, refused):
    """Jupyter leaves .ipynb_checkpoints, which would be class 0 and shift the others."""
    save('inet/train/.ipynb_checkpoints/0.png', IMAGE)
    line = refused(verify_dataset, classifier)
    assert '.ipynb_checkpoints' in line
    # Not what would let a run begin with it as a class.
    assert 'num_classes=3' not in line


@DATASETS.register_module()
class Own(BaseDataset):
    def __init__(self, data_root, data_prefix, metainfo, pipeline):
        super().__init__(data_root=data_root, data_prefix=data_prefix, metainfo=metainfo, pipeline=pipeline)

    def load_data_list(self):
        return []


def test_a_data_set_of_few_arguments_without_samples(root, refused):
    option = ('--cfg-options', 'train_dataloader.dataset.dataset.type=Own')
    assert 'train_dataloader.dataset in config.py' in refused(verify_dataset, 'config.py', *option)


def test_a_type_may_be_a_class():
    steps = [dict(type=LoadImageFromFile), dict(type=RandomFlip)]
    assert verify_dataset.only_loading(dict(type=Own, pipeline=steps))['pipeline'] == steps[:1]


def test_config_without_data(root, refused):
    (root / 'config.py').write_text('model = dict()\n')
    assert 'has none of the dataloaders to verify' in refused(verify_dataset, 'config.py')
