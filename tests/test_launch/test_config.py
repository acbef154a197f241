"""Configs are found, read and merged; misspelt top-level keys are refused, variables are not."""

from argparse import ArgumentParser
from pathlib import Path

import pytest

from mmvisiongru.config import get_config
from mmvisiongru.errors import InputError
from mmvisiongru.launch.options import add_config_options

UPERNET = 'visiongru-tiny_upernet_8xb2-160k_ade20k-512x512'


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
