"""Scores of a segmentor's classes, which stay in float32 where the rest of the model is in 16 bits."""

from contextlib import nullcontext

import pytest
import torch
from mmseg.models.decode_heads import FCNHead
from torch import nn

from mmvisiongru.models.layers.precision import converted_once, score_in_float32
from tests.harness.operators import Operators


def head():
    torch.manual_seed(0)
    return FCNHead(
        in_channels=6, channels=6, num_convs=0, concat_input=False, num_classes=3, in_index=0, dropout_ratio=0
    )


@pytest.mark.parametrize('weights', [torch.float32, torch.bfloat16])
def test_scores_are_not_rounded_to_16_bits(weights):
    model = nn.ModuleList([head(), nn.Conv2d(6, 5, 1)])
    model[0].conv_seg = nn.Conv2d(6, 3, 1, bias=weights == torch.float32)
    names, kept = list(model.state_dict()), model[0].conv_seg
    score_in_float32(model)
    assert list(model.state_dict()) == names
    assert model[0].conv_seg is kept
    # Other convolutions stay as they are.
    assert type(model[1]) is nn.Conv2d
    x = torch.randn(2, 6, 5, 7).bfloat16()
    model = model.to(weights)
    with torch.autocast('cpu', torch.bfloat16, enabled=weights == torch.float32):
        scores = model[0]([x])
    weight, bias = (None if p is None else p.double() for p in (kept.weight, kept.bias))
    expected = nn.functional.conv2d(x.double(), weight, bias)
    assert scores.dtype == torch.float32
    assert model[0].double()([x.double()]).dtype == torch.float64
    torch.testing.assert_close(scores, expected.float(), rtol=1e-6, atol=1e-6)


def test_weights_are_converted_once():
    layer, x = nn.Linear(4, 3), torch.randn(2, 4)
    with torch.no_grad():
        for kept, number in ((nullcontext(), 3), (converted_once(), 1)):
            with kept, Operators() as operators:
                for _ in range(3):
                    with torch.autocast('cpu', torch.bfloat16):
                        layer(x)
            # The input each time, weight and bias as often as they must be.
            assert operators.count['_to_copy'] == 3 + 2 * number
        # Nothing is left behind: other weights, other numbers.
        layer.weight.zero_()
        with torch.autocast('cpu', torch.bfloat16):
            torch.testing.assert_close(layer(x), layer.bias.bfloat16().expand(2, 3))
