"""Mistakes of a first day: each ends tools/train.py with one line that names the key and what to set."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from tests.harness import ROOT
from tests.harness.small_runs import CLASSIFICATION, SEGMENTATION, write_config
from tools import train

# A pyramid pooling as UperNet has it, in place of the head.
UPERNET = """
model = dict(decode_head=dict(
    _delete_=True, type='UPerHead', in_channels=[8, 16, 32, 64], in_index=[0, 1, 2, 3], pool_scales=(1, 2),
    channels=8, num_classes=3, norm_cfg=dict(type='SyncBN'),
))
"""


@pytest.fixture
def work(workplace):
    """A folder with a config and data of each task."""
    write_config(workplace / 'seg.py', SEGMENTATION, 'ade')
    write_config(workplace / 'cls.py', CLASSIFICATION, 'inet', "launcher = 'none'\n")
    return workplace


def mistake(capsys, config: str, *options: str, leaf: str = '') -> str:
    """The one line that ends a training, before its first iteration."""
    if leaf:
        Path('leaf.py').write_text(f"_base_ = '{config}'\n{leaf}\n")
    options = ['--cfg-options', *options] if options else []
    with pytest.raises(SystemExit, match='2'):
        train.main(['leaf.py' if leaf else config, *options])
    (line,) = capsys.readouterr().err.splitlines()
    assert not list(Path().rglob('*.pth.seal'))
    assert not list(Path().rglob('scalars.json'))
    return line.removeprefix('error: ')


def save_weights(config: str, path: str, prefix: str = '') -> None:
    """A checkpoint of the model of a config, or of the part of it that a prefix names."""
    with DefaultScope.overwrite_default_scope(Config.fromfile(config).default_scope):
        state = MODELS.build(Config.fromfile(config).model).state_dict()
    torch.save({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}, path)


@pytest.mark.parametrize(
    ('config', 'option', 'line'),
    [
        # One too many trains without a word: no label asks for it.
        (
            'seg.py',
            'model.decode_head.num_classes=4',
            'model.decode_head.num_classes=4, but train_dataloader.dataset has 3 classes; '
            'set model.decode_head.num_classes=3',
        ),
        (
            'seg.py',
            'model.auxiliary_head.num_classes=150',
            'model.auxiliary_head.num_classes=150, but train_dataloader.dataset has 3 classes; '
            'set model.auxiliary_head.num_classes=3',
        ),
        (
            'cls.py',
            'model.head.num_classes=3',
            'model.head.num_classes=3, but train_dataloader.dataset has 2 classes; '
            'set model.head.num_classes=2',
        ),
        (
            'cls.py',
            'data_preprocessor.num_classes=1',
            'data_preprocessor.num_classes=1, but train_dataloader.dataset has 2 classes; '
            'set data_preprocessor.num_classes=2',
        ),
        (
            'cls.py',
            'model.head.in_channels=768',
            'model.head.in_channels=768 in cls.py, but the backbone gives it maps of 16 channels; '
            'set model.head.in_channels=16',
        ),
        (
            'seg.py',
            'model.decode_head.in_channels=768',
            'model.decode_head.in_channels=768 in seg.py, but the backbone gives it maps of 64 channels; '
            'set model.decode_head.in_channels=64',
        ),
        (
            'cls.py',
            'model.backbone.droppath_rate=0.1',
            "model.backbone in cls.py: VisionGRU takes no argument 'droppath_rate'; did you mean "
            "'drop_path_rate'?",
        ),
        (
            'cls.py',
            'train_dataloader.dataset.pipeline.1.meta_key=a',
            "train_dataloader.dataset.pipeline.1 in cls.py: PackInputs takes no argument 'meta_key'; did you "
            "mean 'meta_keys'?",
        ),
        (
            'cls.py',
            'val_dataloader.dataset.data_rot=inet',
            "val_dataloader.dataset in cls.py: ImageNet takes no argument 'data_rot'; did you mean "
            "'data_root'?",
        ),
    ],
)
def test_a_wrong_setting(work, capsys, config, option, line):
    if 'auxiliary_head' in option:
        head = "dict(type='FCNHead', in_channels=32, in_index=2, channels=8, num_convs=1, num_classes=3)"
        (work / 'seg.py').write_text((work / 'seg.py').read_text() + f"model['auxiliary_head'] = {head}\n")
    assert mistake(capsys, config, option) == line


def test_a_neck_of_another_width(work, capsys):
    neck = "model = dict(neck=dict(type='FPN', in_channels=[8, 16, 32, 63], out_channels=64, num_outs=4))"
    assert mistake(capsys, 'seg.py', leaf=neck) == (
        'model.neck.in_channels=[8, 16, 32, 63] in leaf.py, but the backbone gives it maps of '
        '[8, 16, 32, 64] channels; set model.neck.in_channels=[8,16,32,64]'
    )


def test_heads_of_upernet(work, capsys):
    line = mistake(capsys, 'seg.py', leaf=UPERNET.replace('32, 64]', '32, 63]'))
    assert line.endswith('set model.decode_head.in_channels=[8,16,32,64]')


def test_a_batch_of_one_image(work, capsys):
    line = mistake(capsys, 'seg.py', 'train_dataloader.batch_size=1', leaf=UPERNET)
    assert line.startswith(
        'train_dataloader.batch_size=1 leaves one value a channel to the batch norm model.'
    )
    assert 'set train_dataloader.batch_size=2 or more, or model.decode_head.norm_cfg=' in line
    # Without a pooling to 1 x 1 it is fine.
    finest = ['model.decode_head.in_index=0', 'model.decode_head.in_channels=8']
    train.main(['seg.py', '--cfg-options', 'train_dataloader.batch_size=1', *finest])


def test_another_number_of_folders(work, capsys):
    base = ROOT / 'configs/classification/visiongru-tiny_8xb128_in1k.py'
    root = [f'{name}_dataloader.dataset.data_root=inet' for name in ('train', 'val')]
    folder = work / 'inet/train'
    assert mistake(capsys, str(base), *root) == (
        f'train_dataloader.dataset (ImageNet) has 1000 classes, but {folder} has 2 folders; put the missing '
        "ones there, or for a set of your own set train_dataloader.dataset.type='CustomDataset', which takes "
        'the folders as classes, with data_prefix in place of split'
    )


@pytest.mark.parametrize('way', ['load_from', 'init_cfg'])
def test_a_released_checkpoint(work, capsys, way):
    torch.save({'_orig_mod.snake_gru.conv0.weight': torch.zeros(8, 4, 3, 3)}, 'released.pth')
    option, key = "load_from='released.pth'", 'load_from'
    if way == 'init_cfg':
        option = "model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='released.pth')))"
        key = 'model.backbone.init_cfg.checkpoint'
    line = mistake(capsys, 'cls.py', leaf=option)
    assert key in line
    assert 'released.pth' in line
    assert 'convert it with tools/model_converters/official_to_mmvisiongru.py' in line


@pytest.mark.parametrize('prefix', [None, 'head.', 'backbone'])
def test_a_classifier_without_its_prefix(work, capsys, prefix):
    save_weights('cls.py', 'classifier.pth')
    init = dict(type='Pretrained', checkpoint='classifier.pth', prefix=prefix)
    leaf = f'model = dict(backbone=dict(init_cfg={init}))'
    if prefix == 'backbone':
        # Torch takes it with and without the dot.
        Path('leaf.py').write_text(f"_base_ = 'cls.py'\n{leaf}\n")
        train.main(['leaf.py'])
        return
    line = mistake(capsys, 'cls.py', leaf=leaf)
    assert line.startswith(
        f'model.backbone.init_cfg: in classifier.pth, under prefix {prefix!r}, is none of '
    )
    assert line.endswith("; set model.backbone.init_cfg.prefix='backbone.'")


def test_a_backbone_alone_with_a_prefix(work, capsys):
    save_weights('cls.py', 'backbone.pth', 'backbone.')
    init = dict(type='Pretrained', checkpoint='backbone.pth', prefix='backbone.')
    line = mistake(capsys, 'cls.py', leaf=f'model = dict(backbone=dict(init_cfg={init}))')
    assert line.endswith('; set model.backbone.init_cfg.prefix=None')
