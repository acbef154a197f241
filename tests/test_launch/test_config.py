"""Configs are found, read, merged and checked; none of this package, mmseg or mmpretrain is refused."""

import sys
from argparse import ArgumentParser
from contextlib import nullcontext
from importlib import metadata, util
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import DefaultScope
from mmpretrain.datasets import CIFAR10
from mmpretrain.models import VGG
from mmseg.registry import MODELS as SEGMENTORS
from torch import nn

import mmvisiongru.errors
from mmvisiongru.config import check_keys, get_config, type_name
from mmvisiongru.errors import InputError
from mmvisiongru.launch.checks import check_config, check_data
from mmvisiongru.launch.model_checks import heads
from mmvisiongru.launch.options import add_config_options
from mmvisiongru.mmcv_ops import import_mmdet
from tests.harness import ROOT, versions
from tests.harness.config_builders import DETECTORS, LEAVES, load

UPERNET = 'visiongru-tiny_upernet_8xb2-160k_ade20k-512x512'
SEGMENTATION = ROOT / f'configs/segmentation/{UPERNET}.py'


def test_spaces_in_a_value_stay():
    parser = ArgumentParser()
    add_config_options(parser)
    values = 'a=data/my  own', 'b=[x y, z,1, (2, 3)]', 'c="x y"', 'd=1, 2'
    found = parser.parse_args(['x.py', '--cfg-options', *values]).cfg_options
    assert found == dict(a='data/my  own', b=['x y', 'z', 1, (2, 3)], c='x y', d=[1, 2])


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('data_root', 'set train_dataloader.dataset.data_root, val_dataloader.dataset.data_root, test_'),
        ('test_pipeline.0.type', 'set val_dataloader.dataset.pipeline, test_dataloader.dataset.pipeline'),
        ('data_rot', "did you mean 'data_root'?"),
        ('nothing.like.it', "'nothing' in --cfg-options nothing.like.it"),
        ('param_scheduler.9.end', '--cfg-options does not fit'),
    ],
)
def test_option_without_effect(option, message):
    with pytest.raises(InputError) as error:
        get_config(UPERNET, {option: 1})
    assert message in str(error.value)


def test_a_number_of_the_file_is_a_variable_too(here):
    Path('seg.py').write_text('length = 7\ntrain_cfg = dict(max_iters=length)')
    with pytest.raises(InputError, match=r'set train_cfg\.max_iters instead'):
        get_config('seg.py', {'length': 3})


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('bad.py', 'a = 1\nb = a.c\n', "bad.py:2: AttributeError: 'int' object has no attribute 'c'"),
        ('bad.py', 'a = (1\n', 'SyntaxError'),
        ('bad.py', "_base_ = 'nowhere.py'\n", 'nowhere.py'),
        ('bad.py', 'a = 1\n', 'bad.py has no model, train_cfg'),
        ('a/b.py', '', 'no folder a'),
        ('c.py', '', 'c.py does not exist'),
        ('sag.py', '', 'did you mean seg.py'),
        (UPERNET[:-1], '', UPERNET),
    ],
)
def test_config_that_cannot_be_used(here, name, text, message):
    for path, content in (('seg.py', 'a = 1'), (name, text)):
        if content:
            Path(path).write_text(content)
    with pytest.raises(InputError) as error:
        get_config(name, required=('model', 'train_cfg'))
    assert message in str(error.value)


# ---- checks


@pytest.mark.parametrize('name', [*LEAVES, *DETECTORS])
def test_own_configs_pass_and_only_those_of_detectors_import_mmdet(name, monkeypatch):
    monkeypatch.setattr('mmvisiongru.launch.checks.import_mmdet', importer := Mock(wraps=import_mmdet))
    check_config(load(name))
    assert importer.called == name.startswith('detection/')
    assert not DefaultScope._instance_dict


def test_what_mmdet_misses_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmdet.datasets', None)
    monkeypatch.setattr('mmvisiongru.mmcv_ops.provide_ops', lambda: None)
    with pytest.raises(InputError, match=r'mmdet.*docs/detection\.md'):
        check_config(Config(dict(default_scope='mmdet', model=dict(type='MaskRCNN'))))


@pytest.mark.skipif(bool(util.find_spec('mmcv._ext')), reason='mmcv is compiled')
def test_mmdet_imported_before_its_operators_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmdet.models', None)
    monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)
    with pytest.raises(InputError, match=r'operators.*new process'):
        check_config(Config(dict(default_scope='mmdet', model=dict(type='MaskRCNN'))))
    assert 'mmcv._ext' not in sys.modules


@pytest.mark.parametrize('library', ['mmseg', 'mmpretrain'])
def test_configs_of_the_libraries_pass(library):
    folder = Path(util.find_spec(library).origin).parent / '.mim/configs'
    # Those left out need packages or bases that are not installed.
    skipped = ('_base_', 'maskformer', 'mask2former', 'blip2', 'ofa', 'headless', 'replknet', 'swinv2')
    paths = [p for p in sorted(folder.rglob('*.py')) if not any(part in str(p) for part in skipped)]
    # With a mode of its own, and with RandAugment.
    named = [p for p in paths if p.stem in ('vpd_sd_4xb8-25k_nyu-512x512', 'resnest50_32xb64_in1k')]
    assert named
    for path in [*paths[::40], *named]:
        cfg = Config.fromfile(path)
        check_keys(cfg)
        check_config(cfg)
    # A backbone without classes has -1 of them.
    assert [*heads(Config(), nn.Sequential(VGG(11)))] == []


def test_a_type_may_be_a_class_or_its_full_name(here):
    Path('new.py').write_text('from mmengine.optim import OptimWrapper\na = dict(type=OptimWrapper)')
    assert type_name(get_config('new.py').a) == 'OptimWrapper'
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
    (tmp_path / 'maps/0').mkdir(parents=True)
    prefix = dict(img_path='images', seg_map_path='maps')
    part = dict(type='ADE20KDataset', data_root=str(tmp_path), data_prefix=prefix)
    wrapped = dict(type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[part, part]))
    cfg, loaders = data_config(wrapped), ('train_dataloader', 'val_dataloader')
    place = r'train_dataloader.dataset.dataset.datasets.0.data_prefix.img_path'
    with pytest.raises(InputError, match=rf'{tmp_path}/images \({place}\) is empty; ask us'):
        check_data(cfg, loaders)
    (tmp_path / 'images/0.jpg').touch()
    check_data(cfg, loaders)
    (tmp_path / 'images/.cache').mkdir()
    with pytest.raises(InputError, match=r'images .* has a hidden folder \.cache'):
        check_data(cfg, loaders)
    monkeypatch.setattr('os.listdir', Mock(side_effect=PermissionError(13, 'Permission denied')))
    with pytest.raises(InputError, match=r'cannot be read \(Permission denied\); ask us'):
        check_data(cfg, loaders)


@pytest.mark.parametrize(
    ('dataset', 'message'),
    [
        (dict(type='ADE20KDataset', data_root='.', ann_file=['a', 'b']), r"one path, got \['a', 'b'\]"),
        (dict(type='mmpretrain.ImageNet', data_root='.', split='train'), r'/train .* does not exist'),
        # Not in a folder yet.
        (dict(type='MNIST', data_root='data/mnist', split='train'), None),
        (dict(type=CIFAR10, data_root='data/cifar', split='train'), None),
        (dict(type='ImageNet', data_root='s3://bucket/imagenet', split='train'), None),
        (dict(type='ImageNet', data_root='imagenet', backend_args=dict(backend='petrel')), None),
    ],
)
def test_data_sets_of_several_kinds(here, dataset, message):
    (here / 'val').mkdir()
    with pytest.raises(InputError, match=message) if message else nullcontext():
        check_data(data_config(dataset), ('train_dataloader',))


@pytest.mark.parametrize(
    ('found', 'command'),
    [
        (('mmcv-lite', '2.1.0'), '--no-cache-dir mmcv==2.1.0'),
        (('onedl-mmcv', '2.3.6'), '--no-binary onedl-mmcv onedl-mmcv==2.3.6'),
    ],
)
def test_missing_operators_are_named_with_the_command_that_compiles_them(found, command, monkeypatch):
    missing = Mock(side_effect=ModuleNotFoundError("No module named 'mmcv._ext'", name='mmcv._ext'))
    fake = SimpleNamespace(
        version=versions(dict([found])), PackageNotFoundError=metadata.PackageNotFoundError
    )
    monkeypatch.setattr(mmvisiongru.errors, 'metadata', fake)
    monkeypatch.setattr(SEGMENTORS, 'import_from_location', missing)
    with pytest.raises(InputError) as error:
        check_config(Config.fromfile(SEGMENTATION))
    assert f'{found[0]} {found[1]}' in str(error.value)
    assert str(error.value).endswith(command)
    # A classifier does not need them, not even one whose mistake is looked up in all libraries.
    with pytest.raises(InputError, match=r"did you mean 'mmpretrain\.ConvNeXt'"):
        check_config(Config(dict(model=dict(type='mmpretrain.ConvNeXtt'))))
    with pytest.raises(InputError, match=r"; did you mean 'mmpretrain\.ImageClassifier'"):
        check_config(Config(dict(model=dict(type='ImageClassifierr'))))
