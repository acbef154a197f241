"""Time of a model against its linear layers and convolutions: which layers, and what is printed."""

import re

import torch
from torch import nn

from benchmarks import linear_share
from mmvisiongru.models import VRWKV


def test_every_layer_runs_on_the_shapes_of_the_model():
    model, x = VRWKV(dict(embed_dims=8, depth=2)), torch.randn(1, 3, 48, 32)
    calls = linear_share.recorded_layers(model, x)
    # A convolution, and seven linear layers a block.
    assert [type(layer) for layer, _ in calls] == [nn.Conv2d] + 14 * [nn.Linear]
    assert {tuple(z.shape) for _, z in calls} == {(1, 3, 48, 32), (1, 3, 2, 8), (1, 3, 2, 32)}


def test_command(capsys):
    linear_share.main(['mmvisiongru.VRWKV:pico', '--sizes', '64', '--repeats', '1', '--device', 'cpu'])
    assert re.search(r'VRWKV:pico at 64: .*ratio \d+\.\d{3}', capsys.readouterr().out)
