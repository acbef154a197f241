"""Configs: misspelt keys are found, and no config of mmseg or mmpretrain is refused."""

import ast
from difflib import get_close_matches
from pathlib import Path

import mmpretrain
import mmseg
import pytest
from mmengine.config import Config

from mmvisiongru.config import KNOWN_KEYS, VARIABLES, check_keys, get_config
from mmvisiongru.errors import InputError
from mmvisiongru.launch.data import check_data
from tests.harness import ROOT

UPERNET = str(ROOT / 'configs/segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py')


def refused(keys) -> str:
    with pytest.raises(InputError) as error:
        check_keys(Config(dict.fromkeys(keys)))
    return str(error.value)


@pytest.mark.parametrize('key', sorted(KNOWN_KEYS - {'model', 'resume', 'compile'}))
def test_every_key_without_a_letter_is_named(key):
    position = len(key) // 2
    assert f'did you mean {key!r}?' in refused([key[:position] + key[position + 1 :]])


@pytest.mark.parametrize(('typo', 'key'), [('modle', 'model'), ('resme', 'resume'), ('val_cgf', 'val_cfg')])
def test_short_keys_with_letters_exchanged_are_named(typo, key):
    assert f'did you mean {key!r}?' in refused([typo])


def top_level_names(path: Path) -> list[str]:
    return [
        target.id
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and not target.id.startswith('_')
    ]


def test_configs_of_mmseg_and_mmpretrain_pass():
    folders = [Path(package.__file__).parent / '.mim/configs' for package in (mmseg, mmpretrain)]
    paths = [path for folder in folders for path in folder.rglob('*.py')]
    assert len(paths) > 500
    names = {name: path for path in paths for name in top_level_names(path)}
    # BiSeNetV2 has `models = dict(...)`, which changes nothing: the very fault that the check is for.
    faulty = names.pop('models', None)
    assert faulty is None or 'bisenetv2' in faulty.name
    check_keys(Config(dict.fromkeys(names)))


def test_own_configs_pass():
    for path in (ROOT / 'configs').rglob('*.py'):
        check_keys(Config(dict.fromkeys(top_level_names(path))))


def test_customary_variables_are_needed():
    for name in VARIABLES:
        assert get_close_matches(name, KNOWN_KEYS, cutoff=0.8)


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('data_root', 'set train_dataloader.dataset.data_root, val_dataloader.dataset.data_root, test_'),
        (
            'test_pipeline.0.type',
            'set val_dataloader.dataset.pipeline, test_dataloader.dataset.pipeline instead',
        ),
        ('data_rot', "did you mean 'data_root'?"),
        ('nothing.like.it', "unknown key 'nothing' in --cfg-options nothing.like.it"),
        ('param_scheduler.9.end', '--cfg-options does not fit'),
    ],
)
def test_option_without_effect(option, message):
    with pytest.raises(InputError, match=r'.') as error:
        get_config(UPERNET, {option: 1})
    assert message in str(error.value)


def test_option_with_effect():
    cfg = get_config(UPERNET, {'optim_wrapper.optimizer.lr': 0.5, 'compile': True})
    assert cfg.optim_wrapper.optimizer.lr == 0.5
    assert cfg.compile is True


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a = 1\nb = a.c\n', "bad.py:2: AttributeError: 'int' object has no attribute 'c'"),
        ('a = (1\n', 'SyntaxError'),
        ("_base_ = 'nowhere.py'\n", 'nowhere.py'),
        ('a = 1\n', 'bad.py has no model, train_cfg; is it a part for `_base_`?'),
    ],
)
def test_config_that_fails(tmp_path, text, message):
    path = tmp_path / 'bad.py'
    path.write_text(text)
    with pytest.raises(InputError) as error:
        get_config(str(path), required=('model', 'train_cfg'))
    assert message in str(error.value)


def data_config(dataset: dict) -> Config:
    return Config(dict(train_dataloader=dict(dataset=dataset), val_dataloader=None, data_hint='ask us'))


def test_data_folders_inside_wrappers(tmp_path):
    (tmp_path / 'images').mkdir()
    part = dict(type='ADE20KDataset', data_root=str(tmp_path), data_prefix=dict(img_path='images'))
    wrapped = dict(type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[part, part]))
    place = r'train_dataloader.dataset.dataset.datasets.0.data_prefix.img_path'
    with pytest.raises(InputError, match=rf'data folder {tmp_path}/images \({place}\) is empty; ask us'):
        check_data(data_config(wrapped), ('train_dataloader', 'val_dataloader'))
    (tmp_path / 'images/0.jpg').touch()
    check_data(data_config(wrapped), ('train_dataloader', 'val_dataloader'))


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
