"""Layers in the place of others: deterministic pooling, and scores in float32 beside 16 bits."""

from contextlib import nullcontext
from unittest.mock import patch

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.models.decode_heads import FCNHead
from mmseg.models.decode_heads.psp_head import PPM
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

from mmvisiongru.models.layers.pooling import AveragePool, replace_pools
from mmvisiongru.models.layers.precision import (
    WideConv2d,
    converted_once,
    score_in_float32,
    scores_in_float32,
)
from tests.harness.config_builders import UPERNET, load
from tests.harness.operators import Operators

# Of the operators that torch.use_deterministic_algorithms refuses on CUDA, those that a segmentor may meet.
REFUSED = ('adaptive_avg_pool', 'adaptive_max_pool', 'upsample', 'grid_sampl', 'reflection_pad', 'max_unpool')
REFUSED += ('histc', 'bincount', 'median', 'kthvalue', 'scatter_reduce', 'put_', 'ctc_loss')


@pytest.mark.parametrize('output_size', [1, 2, 3, 6, (3, 6), (None, 2)])
@pytest.mark.parametrize('size', [(1, 1), (5, 7), (16, 16), (31, 18)])
def test_the_windows_are_those_of_torch(size, output_size):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=generator)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outs = [kind(output_size)(v) for kind, v in zip((AveragePool, nn.AdaptiveAvgPool2d), inputs, strict=True)]
    torch.testing.assert_close(*outs, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn(outs[1].shape, dtype=torch.float64, generator=generator)
    gradients = [torch.autograd.grad(out, v, cotangent)[0] for out, v in zip(outs, inputs, strict=True)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_16_bits_are_rounded_once():
    x = torch.randn(2, 8, 31, 18, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = nn.AdaptiveAvgPool2d(6)(x.double()).bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(AveragePool(6)(x), expected, rtol=2**-8, atol=1e-6)


def test_the_pyramid_of_mmseg():
    torch.manual_seed(0)
    norm, act = dict(type='BN'), dict(type='ReLU')
    pyramid = PPM((1, 2, 3, 6), 8, 4, None, norm, act, align_corners=False).double()
    names = list(pyramid.state_dict())
    x = torch.randn(2, 8, 13, 11, dtype=torch.float64)
    expected = pyramid(x)
    replace_pools(pyramid)
    assert list(pyramid.state_dict()) == names
    assert sum(isinstance(m, AveragePool) for m in pyramid.modules()) == 4
    torch.testing.assert_close(pyramid(x), expected, rtol=1e-10, atol=1e-10)


@pytest.fixture
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures('_deterministic')
def test_a_step_of_upernet_is_refused_for_its_pooling_alone():
    """As on any device but a CPU: there, interpolate takes its deterministic form if it has to."""
    cfg = load(UPERNET)
    init_default_scope('mmseg')
    with torch.device('meta'):
        model = MODELS.build(cfg.model).train()
        sample = SegDataSample(
            gt_sem_seg=PixelData(data=torch.zeros(1, 128, 96, dtype=torch.long)),
            metainfo=dict(img_shape=(128, 96)),
        )

    def refused():
        # The accuracy for the log selects pixels, which tensors without values cannot.
        accuracy = patch('mmseg.models.decode_heads.decode_head.accuracy', return_value=torch.zeros(1))
        with Operators() as operators, accuracy:
            images = torch.empty(2, 3, 128, 96, device='meta')
            losses = model(images, [sample, sample], mode='loss')
            model.parse_losses(losses)[0].backward()
        names = {name: name.strip('_') for name in operators.count}
        return {names[n]: k for n, k in operators.count.items() if names[n].startswith(REFUSED)}

    # Pooling to 1 x 1 is a mean.
    assert refused() == dict(adaptive_avg_pool2d=3, adaptive_avg_pool2d_backward=3)
    replace_pools(model)
    assert refused() == {}


# ---- scores of a segmentor's classes


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


def test_scores_that_the_next_head_of_a_cascade_reads_stay_as_they_are():
    cascade = nn.ModuleDict(dict(decode_head=nn.ModuleList([head(), head()])))
    assert score_in_float32(cascade) == [cascade.decode_head[1].conv_seg]


def test_convolutions_are_restored():
    model = head()
    conv = model.conv_seg
    with scores_in_float32(model):
        assert type(conv) is WideConv2d
    assert type(conv) is nn.Conv2d
    with pytest.raises(RuntimeError, match='channels'), scores_in_float32(model):
        model([torch.zeros(1, 5, 4, 4)])
    assert type(conv) is nn.Conv2d
    assert model.conv_seg is conv
    # A layer that was converted for good stays so.
    score_in_float32(model)
    with scores_in_float32(model):
        pass
    assert type(conv) is WideConv2d


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
