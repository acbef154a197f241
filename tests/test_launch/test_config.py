"""Configs are found, read and merged; misspelt top-level keys are refused, variables are not."""

from pathlib import Path

import pytest
from mmengine.config import Config

from mmvisiongru.config import check_keys, get_config
from mmvisiongru.errors import InputError

UPERNET = 'visiongru-tiny_upernet_8xb2-160k_ade20k-512x512'


@pytest.mark.parametrize('key', ['model', 'resume', 'val_cfg', 'train_dataloader', 'custom_hooks'])
def test_misspelt_keys_are_named(key):
    typo = key[:2] + key[3] + key[2] + key[4:]
    with pytest.raises(InputError, match=f'did you mean {key!r}'):
        check_keys(Config({typo: None}))


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


def test_option_with_effect():
    cfg = get_config(UPERNET, {'optim_wrapper.optimizer.lr': 0.5, 'compile': True})
    assert cfg.optim_wrapper.optimizer.lr == 0.5
    assert cfg.compile is True


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('bad.py', 'a = 1\nb = a.c\n', "bad.py:2: AttributeError: 'int' object has no attribute 'c'"),
        ('bad.py', 'a = (1\n', 'SyntaxError'),
        ('bad.py', "_base_ = 'nowhere.py'\n", 'nowhere.py'),
        ('bad.py', 'a = 1\n', 'bad.py has no model, train_cfg'),
        ('a/b.py', '', 'no folder a'),
        ('c.py', '', 'c.py does not exist'),
        (UPERNET[:-1], '', UPERNET),
    ],
)
def test_config_that_cannot_be_used(tmp_path, monkeypatch, name, text, message):
    monkeypatch.chdir(tmp_path)
    if text:
        Path(name).write_text(text)
    with pytest.raises(InputError) as error:
        get_config(name, required=('model', 'train_cfg'))
    assert message in str(error.value)
