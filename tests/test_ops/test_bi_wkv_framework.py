"""Bi-WKV in the framework: checks of operators, compilers, transforms, autocast, FLOP counters."""

from functools import partial

import pytest
import torch
from torch import nn

from mmvisiongru.ops import bi_wkv
from mmvisiongru.ops.wkv import runnable_backends
from tests.harness.framework import (
    assert_compiles,
    assert_exports,
    assert_one_graph,
    assert_registered,
    counted_flops,
)
from tests.harness.wkv import (
    DEVICES,
    TOLERANCE,
    assert_within,
    by_sums,
    cases,
    error,
    expected,
    inputs,
    run,
    run_backend,
)

OPS = torch.ops.mmvisiongru


def leaf(x):
    return x.detach().clone().requires_grad_()


def transposed(x):
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def op_samples():
    w, u, k, v, dy = inputs(2, 9, 3)
    wide = [x.double() for x in (w, u, k, v)]
    return {
        'bi_wkv': [
            (*map(leaf, (w, u, k, v)), 'paper', 'auto'),
            (*map(leaf, wide), 'released', 'auto'),
            (leaf(w), leaf(u), *(transposed(x).requires_grad_() for x in (k, v)), 'paper', 'torch'),
            (*map(leaf, wide[:2]), leaf(k.bfloat16()), leaf(v.bfloat16()), 'paper', 'auto'),
            (w, u, k[:, :0], v[:, :0], 'paper', 'auto'),
        ],
        'bi_wkv_backward': [
            (dy, w, u, k, v, 'paper', 'auto'),
            (dy[:1, :1, :1].expand(2, 9, 3), w, u, transposed(k), v, 'released', 'auto'),
            (dy[:, :0], w, u, k[:, :0], v[:, :0], 'paper', 'auto'),
        ],
    }


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('name', list(op_samples()))
def test_opcheck(name, device):
    assert_registered(getattr(OPS, name), op_samples()[name], device)


@pytest.mark.parametrize(
    ('distance', 'device', 'backend', 'dtype'),
    [
        (distance, *case)
        for distance in ('paper', 'released')
        for case in cases(torch.float64, distance=distance)
    ],
)
def test_gradcheck(device, backend, dtype, distance):
    tensors = [x.to(device).requires_grad_() for x in inputs(2, 7, 2, dtype)[:4]]
    average = partial(bi_wkv, distance=distance, backend=backend)
    assert torch.autograd.gradcheck(average, tensors)


# ---- compilers


class Averages(nn.Module):
    """Bi-WKV, with something for a compiler to do around it."""

    def forward(self, w, u, k, v):
        return bi_wkv(w / k.size(1), u / k.size(1), k * 1.5, v.tanh()).sin()


def averages_by_definition(w, u, k, v):
    return by_sums(w / k.size(1), u / k.size(1), k * 1.5, v.tanh()).sin()


def assert_averages(compiled, length, device):
    tensors = inputs(2, length, 3, seed=length)
    tensors[:2] = [x * length for x in tensors[:2]]
    got = run(compiled, *(x.to(device) for x in tensors))
    assert_within(got, expected(tensors, averages_by_definition), torch.float32)


@pytest.mark.parametrize('device', DEVICES)
def test_compile_dynamic_length_once(device):
    assert_one_graph(Averages(), partial(assert_averages, device=device))


# A cold C++ compilation of the elementwise code around the operator.
@pytest.mark.long
@pytest.mark.parametrize('device', DEVICES)
def test_compile_inductor(device):
    assert_compiles(Averages(), partial(assert_averages, device=device))


def test_export():
    def tensors(length):
        return inputs(2, length, 3, seed=length)[:4]

    limit = TOLERANCE[torch.float32][1]
    assert_exports(Averages(), tensors, averages_by_definition, limit, OPS.bi_wkv)


# ---- types and costs


def test_autocast_leaves_the_operator_in_the_type_it_is_given():
    tensors = inputs(2, 65, 3)
    plain = run(bi_wkv, *tensors)
    with torch.autocast('cpu', torch.bfloat16):
        cast = run(bi_wkv, *tensors)
    for name, x in plain.items():
        assert torch.equal(x, cast[name]), name


@pytest.mark.parametrize('backend', runnable_backends('cpu', torch.bfloat16))
def test_autocast_bf16(backend):
    w, u, *_ = inputs(2, 65, 3)
    torch.manual_seed(0)
    linear = nn.Linear(8, 6, bias=False)
    x, cotangent = torch.randn(2, 65, 8), torch.randn(2, 65, 3).bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        projected = linear(x)
        projected.retain_grad()
        y = bi_wkv(w, u, *projected.chunk(2, -1), backend=backend)
    assert y.dtype == projected.dtype == torch.bfloat16
    y.backward(cotangent)
    assert linear.weight.grad.dtype == torch.float32
    k, v = projected.detach().chunk(2, -1)
    dk, dv = projected.grad.chunk(2, -1)
    ref = expected((w, u, k, v, cotangent), by_sums)
    assert_within(
        dict(y=y.detach(), dk=dk, dv=dv), {name: ref[name] for name in ('y', 'dk', 'dv')}, torch.bfloat16
    )


@pytest.mark.parametrize('wide', [torch.float32, torch.float64])
@pytest.mark.parametrize(('device', 'backend', 'dtype'), cases(torch.bfloat16, torch.float32))
def test_decay_and_bonus_keep_their_type(device, backend, dtype, wide):
    w, u, *others = inputs(2, 40, 3, dtype)
    got = run_backend(backend, (w.to(wide), u.to(wide), *others), device)
    assert got['dw'].dtype == got['du'].dtype == wide
    assert got['y'].dtype == got['dk'].dtype == got['dv'].dtype == dtype


def test_inference_mode_and_meta_tensors():
    tensors = inputs(2, 65, 3)
    with torch.inference_mode():
        y = bi_wkv(*tensors[:4])
    assert error(y, expected(tensors)['y'], 'max') <= TOLERANCE[torch.float32][1]
    w, u = (torch.empty(3, device='meta') for _ in range(2))
    for dtype in TOLERANCE:
        y = bi_wkv(w, u, *(torch.empty(2, 5, 3, device='meta', dtype=dtype) for _ in range(2)))
        assert (y.shape, y.dtype, y.device.type) == ((2, 5, 3), dtype, 'meta')


def test_flop_counter_sees_the_operator():
    tensors = inputs(2, 50, 3)
    elements = tensors[2].numel()
    # x v, and numerator and denominator of the past, the future and the token itself: 7 multiply-adds.
    assert counted_flops(lambda: bi_wkv(*tensors[:4])) == 14 * elements
    assert counted_flops(lambda: run(bi_wkv, *tensors)) == (1 + 3) * 14 * elements
