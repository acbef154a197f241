"""Time of a model against its linear layers and convolutions: which layers, and what is printed."""

import re

import pytest
import torch
from torch import nn

from benchmarks import linear_share
from mmvisiongru.errors import InputError
from mmvisiongru.models import VRWKV


def test_every_layer_runs_on_the_shapes_of_the_model():
    model, x = VRWKV(dict(embed_dims=8, depth=2)), torch.randn(1, 3, 48, 32)
    calls = linear_share.recorded_layers(model, x)
    # A convolution, and seven linear layers a block.
    assert [type(layer) for layer, _ in calls] == [nn.Conv2d] + 14 * [nn.Linear]
    assert {tuple(z.shape) for _, z in calls} == {(1, 3, 48, 32), (1, 3, 2, 8), (1, 3, 2, 32)}
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_ratio_is_of_the_time_of_model_and_layers(monkeypatch):
    monkeypatch.setattr(
        linear_share.measure,
        'interleaved_times',
        lambda *args: dict(model=[3.0, 9.0, 3.0], layers=[2.0, 2.0, 8.0]),
    )
    model = VRWKV(dict(embed_dims=8, depth=1))
    assert linear_share.compare(model, torch.randn(1, 3, 16, 16), 3) == dict(model=3.0, layers=2.0, ratio=1.5)


def test_command(capsys):
    linear_share.main(['mmvisiongru.VRWKV:pico', '--sizes', '64', '--repeats', '1', '--device', 'cpu'])
    line = capsys.readouterr().out.splitlines()[1]
    assert re.fullmatch(r'mmvisiongru.VRWKV:pico at 64: .* ms, .* alone .* ms, ratio \d+\.\d{3}', line)


def test_unknown_model_is_one_line(capsys):
    with pytest.raises((SystemExit, InputError)):
        linear_share.main(['nothing_of_that_name', '--device', 'cpu'])
    assert capsys.readouterr().err.count('\n') <= 1
