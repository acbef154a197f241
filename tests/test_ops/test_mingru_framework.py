"""The scan of minGRU in the framework: checks of operators, compilers, autocast, FLOP counters."""

from functools import partial

import pytest
import torch
from torch import nn

from mmvisiongru.ops import mingru_scan, mingru_scan_2d, runnable_backends
from tests.harness.framework import (
    assert_compiles,
    assert_exports,
    assert_one_graph,
    assert_registered,
    counted_flops,
)
from tests.harness.scans import (
    DEVICES,
    PATHS,
    TOLERANCE,
    assert_within,
    backends,
    composed_2d,
    error,
    expected,
    leaf,
    loop_scan,
    normal,
    run,
    transposed,
)

OPS = torch.ops.mmvisiongru


def op_samples():
    gate, hidden, grad = normal(2, 9, 3)
    strided = [transposed(x) for x in (gate, hidden)]
    h = mingru_scan(gate, hidden)
    (projected,) = normal(2, 3, 4, 24, number=1)
    states = mingru_scan_2d(projected, paths=PATHS)
    names = ','.join(PATHS)
    return {
        'mingru_scan': [
            (leaf(gate), leaf(hidden), False, 'g', 'auto'),
            (leaf(gate.double()), leaf(hidden.double()), True, 'linear', 'auto'),
            (*(x.detach().requires_grad_() for x in strided), True, 'g', 'auto'),
            (gate[:, :0], hidden[:, :0], False, 'g', 'auto'),
        ],
        'mingru_scan_backward': [
            (grad, gate, hidden, h, False, 'g', 'auto'),
            (grad[:1, :1, :1].expand(2, 9, 3), *strided, h, True, 'linear', 'auto'),
        ],
        'mingru_scan_2d': [
            (leaf(projected), names, 'g', 'auto'),
            (leaf(projected.transpose(1, 2)), 'row,row_reverse', 'linear', 'auto'),
            (projected, names, 'g', 'auto', torch.ones(2, 4, 3)),
        ],
        'mingru_scan_2d_backward': [
            (torch.ones_like(states), projected, states, names, 'g', 'auto'),
            (torch.ones(()).expand(states.shape), projected, states, names, 'linear', 'auto'),
        ],
    }


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('name', list(op_samples()))
def test_opcheck(name, device):
    assert_registered(getattr(OPS, name), op_samples()[name], device)


@pytest.mark.parametrize('candidate', ['g', 'linear'])
@pytest.mark.parametrize(('device', 'backend', 'dtype'), backends(torch.float64))
def test_gradcheck(device, backend, dtype, candidate):
    gate, hidden = (x.to(device).requires_grad_() for x in normal(2, 7, 2, dtype=dtype, number=2))
    for reverse in (False, True):
        scan = partial(mingru_scan, reverse=reverse, candidate=candidate, backend=backend)
        assert torch.autograd.gradcheck(scan, (gate, hidden))
    (projected,) = normal(1, 3, 4, 16, dtype=dtype, number=1)
    scan = partial(mingru_scan_2d, paths=PATHS, candidate=candidate, backend=backend)
    assert torch.autograd.gradcheck(scan, (projected.to(device).requires_grad_(),))


class Scans(nn.Module):
    """Both public functions, with something for a compiler to do around them."""

    def forward(self, gate, hidden):
        h = mingru_scan(gate * 1.5, hidden.tanh(), reverse=True)
        B, L, D = h.shape
        x = torch.cat((h, gate, hidden, h + 1), -1).view(B, 1, L, 4 * D)
        return mingru_scan_2d(x, candidate='linear').sin()


def scans_by_loop(gate, hidden):
    h = loop_scan(gate * 1.5, hidden.tanh(), reverse=True)
    x = torch.cat((h, gate, hidden, h + 1), -1)[:, None]
    return composed_2d(x, ('row', 'row_reverse'), 'linear').sin()


def assert_scans(compiled, length, device):
    gate, hidden, _ = normal(2, length, 3, seed=length)
    (cotangent,) = normal(2, 1, length, 6, number=1)
    ref = run(scans_by_loop, gate.double(), hidden.double(), cotangent=cotangent.double())
    got = run(compiled, gate.to(device), hidden.to(device), cotangent=cotangent.to(device))
    assert_within(got, ref, torch.float32)


@pytest.mark.parametrize('device', DEVICES)
def test_compile_fullgraph(device):
    assert_compiles(Scans(), partial(assert_scans, device=device), backend='aot_eager')


@pytest.mark.parametrize('device', DEVICES)
def test_compile_dynamic_length_once(device):
    assert_one_graph(Scans(), partial(assert_scans, device=device))


# A cold C++ compilation of the elementwise code around the scan.
@pytest.mark.long
@pytest.mark.parametrize('device', DEVICES)
def test_compile_inductor(device):
    assert_compiles(Scans(), partial(assert_scans, device=device))


def test_export():
    def tensors(length):
        return normal(2, length, 3, number=2, seed=length)

    limit = TOLERANCE[torch.float32][1]
    assert_exports(Scans(), tensors, scans_by_loop, limit, OPS.mingru_scan, OPS.mingru_scan_2d)


def test_autocast_leaves_the_scan_in_the_type_it_is_given():
    (gate, hidden, cotangent), _ = expected((2, 65, 3), torch.float32, False, 'g')
    plain = run(mingru_scan, gate, hidden, cotangent=cotangent)
    with torch.autocast('cpu', torch.bfloat16):
        cast = run(mingru_scan, gate, hidden, cotangent=cotangent)
    for name, x in plain.items():
        assert torch.equal(x, cast[name]), name


@pytest.mark.parametrize('backend', runnable_backends('cpu', torch.bfloat16))
def test_autocast_bf16(backend):
    torch.manual_seed(0)
    linear = nn.Linear(8, 6, bias=False)
    x, cotangent = torch.randn(2, 65, 8), torch.randn(2, 65, 3).bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        projected = linear(x)
        projected.retain_grad()
        out = mingru_scan(*projected.chunk(2, -1), backend=backend)
    assert out.dtype == projected.dtype == torch.bfloat16
    out.backward(cotangent)
    assert linear.weight.grad.dtype == torch.float32
    gate, hidden = projected.detach().double().chunk(2, -1)
    ref = run(loop_scan, gate, hidden, cotangent=cotangent.double())
    d_gate, d_hidden = projected.grad.chunk(2, -1)
    assert_within(dict(out=out.detach(), d_gate=d_gate, d_hidden=d_hidden), ref, torch.bfloat16)


def test_inference_mode_and_meta_tensors():
    (gate, hidden, _), ref = expected((2, 65, 3), torch.float32, False, 'g')
    with torch.inference_mode():
        assert error(mingru_scan(gate, hidden), ref['out'], 'max') <= TOLERANCE[torch.float32][1]
    for dtype in TOLERANCE:
        out = mingru_scan(*(x.to('meta', dtype) for x in (gate, hidden)))
        assert (out.shape, out.dtype, out.device.type) == (gate.shape, dtype, 'meta')
    out = mingru_scan_2d(torch.empty(2, 5, 7, 48, device='meta'), paths=PATHS)
    assert (out.shape, out.device.type) == ((2, 5, 7, 24), 'meta')


def test_flop_counter_sees_the_scan():
    gate, hidden, cotangent = normal(2, 50, 3)
    # (1 - z) h + z c is two multiplications and additions an element, as framework formulas count them.
    assert counted_flops(lambda: mingru_scan(gate, hidden)) == 4 * gate.numel()
    (projected,) = normal(2, 5, 10, 4 * 2 * 3, number=1)
    assert counted_flops(lambda: mingru_scan_2d(projected, paths=PATHS)) == 4 * 4 * gate.numel()
    # As for a matrix product, the backward pass costs two forward ones.
    both = counted_flops(lambda: run(mingru_scan, gate, hidden, cotangent=cotangent))
    assert both == 3 * 4 * gate.numel()
    dy = torch.ones(2, 5, 10, 12)
    both = counted_flops(lambda: run(partial(mingru_scan_2d, paths=PATHS), projected, cotangent=dy))
    assert both == 3 * 4 * 4 * gate.numel()
