"""What a config says is checked, and no config of this package, mmseg or mmpretrain is refused."""

import sys
from importlib import metadata, util
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS as SEGMENTORS

import mmvisiongru.errors
from mmvisiongru.config import check_keys
from mmvisiongru.errors import InputError
from mmvisiongru.launch.checks import check_config, check_data
from mmvisiongru.mmcv_ops import import_mmdet
from tests.harness import ROOT
from tests.harness.config_builders import DETECTORS, LEAVES, load

SEGMENTATION = ROOT / 'configs/segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py'


@pytest.mark.parametrize('name', [*LEAVES, *DETECTORS])
def test_own_configs_pass_and_only_those_of_detectors_import_mmdet(name, monkeypatch):
    monkeypatch.setattr('mmvisiongru.launch.checks.import_mmdet', importer := Mock(wraps=import_mmdet))
    check_config(load(name))
    assert importer.called == name.startswith('detection/')
    assert not DefaultScope._instance_dict


def test_what_mmdet_misses_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmdet', None)
    monkeypatch.setattr('mmvisiongru.mmcv_ops.provide_ops', lambda: None)
    with pytest.raises(InputError, match=r'mmdet.*docs/detection\.md'):
        check_config(Config(dict(default_scope='mmdet', model=dict(type='MaskRCNN'))))


@pytest.mark.parametrize('library', ['mmseg', 'mmpretrain'])
def test_configs_of_the_libraries_pass(library):
    folder = Path(util.find_spec(library).origin).parent / '.mim/configs'
    # Those left out need packages or bases that are not installed.
    skipped = ('_base_', 'maskformer', 'mask2former', 'blip2', 'ofa', 'headless', 'replknet', 'swinv2')
    paths = [p for p in sorted(folder.rglob('*.py')) if not any(part in str(p) for part in skipped)]
    for path in paths[::40]:
        cfg = Config.fromfile(path)
        check_keys(cfg)
        check_config(cfg)


def test_a_type_may_be_a_class_or_its_full_name():
    cfg = Config.fromfile(SEGMENTATION)
    cfg.custom_hooks = [dict(type='mmengine.hooks.EMAHook', momentum=0.1)]
    check_config(cfg)
    cfg.custom_hooks[0].momentun = 0.1
    with pytest.raises(InputError, match=r"custom_hooks\.0; did you mean 'momentum'"):
        check_config(cfg)
    # Of one that is not known, mmengine gives the name; its arguments are no mistake.
    for average in (ExponentialMovingAverage, 'Xyzzy'):
        cfg.custom_hooks = [dict(type='EMAHook', ema_type=average, momentum=0.1)]
        check_config(cfg)


def data_config(dataset: dict) -> Config:
    return Config(dict(train_dataloader=dict(dataset=dataset), val_dataloader=None, data_hint='ask us'))


def test_data_folders_inside_wrappers(tmp_path, monkeypatch):
    (tmp_path / 'images').mkdir()
    part = dict(type='ADE20KDataset', data_root=str(tmp_path), data_prefix=dict(img_path='images'))
    wrapped = dict(type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[part, part]))
    cfg, loaders = data_config(wrapped), ('train_dataloader', 'val_dataloader')
    place = r'train_dataloader.dataset.dataset.datasets.0.data_prefix.img_path'
    with pytest.raises(InputError, match=rf'{tmp_path}/images \({place}\) is empty; ask us'):
        check_data(cfg, loaders)
    (tmp_path / 'images/0.jpg').touch()
    check_data(cfg, loaders)
    monkeypatch.setattr('os.listdir', Mock(side_effect=PermissionError(13, 'Permission denied')))
    with pytest.raises(InputError, match=r'cannot be read \(Permission denied\); ask us'):
        check_data(cfg, loaders)


def test_a_list_of_annotation_files(tmp_path):
    dataset = dict(type='ADE20KDataset', data_root=str(tmp_path), ann_file=['a.txt', 'b.txt'])
    with pytest.raises(InputError, match=r"train_dataloader\.dataset\.ann_file .* one path, got \['a.txt'"):
        check_data(data_config(dataset), ('train_dataloader',))


@pytest.mark.parametrize(
    'dataset',
    [
        dict(type='MNIST', data_root='data/mnist', split='train'),
        dict(type='ImageNet', data_root='s3://bucket/imagenet', split='train'),
        dict(type='ImageNet', data_root='imagenet', backend_args=dict(backend='petrel')),
    ],
)
def test_data_that_is_not_in_a_folder_yet(dataset):
    check_data(data_config(dataset), ('train_dataloader',))


def test_split_of_imagenet(tmp_path):
    (tmp_path / 'val').mkdir()
    dataset = dict(type='mmpretrain.ImageNet', data_root=str(tmp_path), split='train')
    with pytest.raises(InputError, match=rf'{tmp_path}/train .* does not exist'):
        check_data(data_config(dataset), ('train_dataloader',))


@pytest.mark.parametrize(
    ('found', 'command'),
    [
        (('mmcv-lite', '2.1.0'), '--no-cache-dir mmcv==2.1.0'),
        (('onedl-mmcv', '2.3.6'), '--no-binary onedl-mmcv onedl-mmcv==2.3.6'),
    ],
)
def test_missing_operators_are_named_with_the_command_that_compiles_them(found, command, monkeypatch):
    def version(name):
        if name != found[0]:
            raise metadata.PackageNotFoundError(name)
        return found[1]

    missing = Mock(side_effect=ModuleNotFoundError("No module named 'mmcv._ext'", name='mmcv._ext'))
    fake = SimpleNamespace(version=version, PackageNotFoundError=metadata.PackageNotFoundError)
    monkeypatch.setattr(mmvisiongru.errors, 'metadata', fake)
    monkeypatch.setattr(SEGMENTORS, 'import_from_location', missing)
    with pytest.raises(InputError) as error:
        check_config(Config.fromfile(SEGMENTATION))
    assert f'{found[0]} {found[1]}' in str(error.value)
    assert str(error.value).endswith(command)
    # They are no matter of a classifier, not even of one whose mistake is looked up in all libraries.
    with pytest.raises(InputError, match=r"did you mean 'mmpretrain\.ConvNeXt'"):
        check_config(Config(dict(model=dict(type='mmpretrain.ConvNeXtt'))))
    with pytest.raises(InputError, match=r"; did you mean 'mmpretrain\.ImageClassifier'"):
        check_config(Config(dict(model=dict(type='ImageClassifierr'))))
