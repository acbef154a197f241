"""The scan of minGRU on tensors of any strides and shapes, empty ones too."""

from functools import partial

import pytest
import torch

from mmvisiongru.ops import mingru_scan, mingru_scan_2d
from tests.harness.scans import (
    PATHS,
    TOLERANCE,
    assert_within,
    each_backend,
    error,
    expected,
    loop_scan,
    normal,
    run,
    transposed,
)


def every_other_channel(x):
    return torch.stack((x, x), 3).flatten(2)[..., ::2]


def every_other_token(x):
    return torch.stack((x, x), 2).flatten(1, 2)[:, ::2]


def batch_last(x):
    return x.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def with_offset(x):
    return torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)


LAYOUTS = [transposed, every_other_channel, every_other_token, batch_last, with_offset]


@pytest.mark.parametrize('layout', LAYOUTS)
@each_backend
def test_noncontiguous(device, backend, dtype, layout):
    (gate, hidden, cotangent), ref = expected((2, 65, 3), dtype, True, 'g')
    scan = partial(mingru_scan, reverse=True, backend=backend)
    # detach keeps the strides, so the leaves of run() have them too.
    for strided in ((True, False, False), (False, True, False), (False, False, True), (True, True, True)):
        args = [
            layout(x.to(device)) if s else x.to(device)
            for x, s in zip((gate, hidden, cotangent), strided, strict=True)
        ]
        assert_within(run(scan, *args[:2], cotangent=args[2]), ref, dtype)


@each_backend
def test_halves_of_one_projection(device, backend, dtype):
    (gate, hidden, cotangent), ref = expected((2, 65, 3), dtype, False, 'g')
    both = torch.cat((hidden, gate), -1).to(device).requires_grad_()
    out = mingru_scan(*both.chunk(2, -1)[::-1], backend=backend)
    out.backward(cotangent.to(device))
    d_hidden, d_gate = both.grad.chunk(2, -1)
    assert_within(dict(out=out.detach(), d_gate=d_gate, d_hidden=d_hidden), ref, dtype)


@each_backend
def test_expanded_cotangent(device, backend, dtype):
    gate, hidden, _ = normal(2, 65, 3)
    ref = run(loop_scan, gate.double(), hidden.double(), cotangent=torch.ones(2, 65, 3, dtype=torch.float64))
    leaves = [x.to(device).requires_grad_() for x in (gate, hidden)]
    mingru_scan(*leaves, backend=backend).sum().backward()
    for leaf, name in zip(leaves, ('d_gate', 'd_hidden'), strict=True):
        assert error(leaf.grad, ref[name], 'max') <= TOLERANCE[dtype][1]
    for shape in ((2, 1, 1), (1, 65, 1), (1, 1, 3)):
        cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(1)).expand(2, 65, 3)
        ref = run(loop_scan, gate.double(), hidden.double(), cotangent=cotangent.double())
        scan = partial(mingru_scan, backend=backend)
        assert_within(run(scan, *(x.detach() for x in leaves), cotangent=cotangent.to(device)), ref, dtype)


@pytest.mark.parametrize('shape', [(1, 65, 3), (2, 1, 3), (2, 65, 1)], ids=str)
@each_backend
def test_expanded_inputs(device, backend, dtype, shape):
    gate, hidden = (x.expand(2, 65, 3) for x in normal(*shape, number=2))
    (cotangent,) = normal(2, 65, 3, number=1, seed=1)
    ref = run(loop_scan, *(x.double() for x in (gate, hidden)), cotangent=cotangent.double())
    scan = partial(mingru_scan, backend=backend)
    got = run(scan, gate.to(device), hidden.to(device), cotangent=cotangent.to(device))
    assert_within(got, ref, dtype)


@pytest.mark.parametrize('shape', [(0, 5, 3), (2, 0, 3), (2, 5, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize('reverse', [False, True], ids=['forward', 'reverse'])
@each_backend
def test_empty(device, backend, dtype, shape, reverse):
    gate, hidden, cotangent = (x.to(device) for x in normal(*shape))
    got = run(partial(mingru_scan, reverse=reverse, backend=backend), gate, hidden, cotangent=cotangent)
    assert all(x.shape == shape and x.dtype == dtype for x in got.values())


@pytest.mark.parametrize('shape', [(0, 4, 5, 24), (2, 0, 5, 24), (2, 4, 0, 24), (1, 4, 5, 0)], ids=str)
@each_backend
def test_empty_map(device, backend, dtype, shape):
    (projected,) = normal(*shape, number=1)
    cotangent = torch.zeros(*shape[:3], shape[3] // 2, device=device)
    got = run(
        partial(mingru_scan_2d, paths=PATHS, backend=backend), projected.to(device), cotangent=cotangent
    )
    assert got['out'].shape == cotangent.shape
    assert got['d_projected'].shape == shape


@pytest.mark.parametrize('wanted', ['gate', 'hidden'])
@each_backend
def test_gradient_of_one_input_alone(device, backend, dtype, wanted):
    (gate, hidden, cotangent), ref = expected((2, 65, 3), dtype, False, 'g')
    args = dict(gate=gate.to(device).clone(), hidden=hidden.to(device).clone())
    args[wanted].requires_grad_()
    mingru_scan(**args, backend=backend).backward(cotangent.to(device))
    assert error(args[wanted].grad, ref[f'd_{wanted}'], 'max') <= TOLERANCE[dtype][1]
    assert all(x.grad is None for name, x in args.items() if name != wanted)


def test_saves_three_tensors_of_the_size_of_the_input():
    gate, hidden, _ = normal(2, 784, 16)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        mingru_scan(gate.requires_grad_(), hidden.requires_grad_())
    assert sum(saved) == 3 * gate.numel()
