"""The scan of minGRU on tensors of any strides and shapes, empty ones too."""

from functools import partial

import pytest
import torch

from mmvisiongru.ops import mingru_scan, mingru_scan_2d
from tests.harness.scans import (
    PATHS,
    TOLERANCE,
    assert_within,
    by_loop,
    each_backend,
    error,
    expected,
    normal,
    run,
    transposed,
)

LAYOUTS = {
    'transposed': transposed,
    'every other channel': lambda x: torch.stack((x, x), 3).flatten(2)[..., ::2],
    'every other token': lambda x: torch.stack((x, x), 2).flatten(1, 2)[:, ::2],
    'batch last': lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    'with an offset': lambda x: torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape),
    'one image': lambda x: x[:1].expand_as(x),
    'one token': lambda x: x[:, :1].expand_as(x),
    'one channel': lambda x: x[..., :1].expand_as(x),
    'one number': lambda x: x[:1, :1, :1].expand_as(x),
}


@pytest.mark.parametrize('layout', LAYOUTS)
@each_backend
def test_strides(device, backend, dtype, layout):
    scan = partial(mingru_scan, reverse=True, backend=backend)
    for strided in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)):
        pairs = zip(normal(2, 65, 3), strided, strict=True)
        tensors = [LAYOUTS[layout](x.to(device)) if change else x.to(device) for x, change in pairs]
        # detach keeps the strides, so the leaves of run() have them too.
        got = run(scan, *tensors[:2], cotangent=tensors[2], device=device)
        assert_within(got, by_loop(*(x.cpu() for x in tensors), reverse=True), dtype)


@pytest.mark.parametrize('empty', range(3))
@each_backend
def test_empty(device, backend, dtype, empty):
    shape = [0 if n == empty else size for n, size in enumerate((2, 5, 3))]
    for reverse in (False, True):
        gate, hidden, cotangent = normal(*shape)
        scan = partial(mingru_scan, reverse=reverse, backend=backend)
        got = run(scan, gate, hidden, cotangent=cotangent, device=device)
        assert all(list(x.shape) == shape and x.dtype == dtype for x in got.values())
    sides, width = [0 if n == empty else 4 for n in range(2)], 0 if empty == 2 else 3 * len(PATHS)
    projected, cotangent = (torch.zeros(1, *sides, n * width) for n in (2, 1))
    got = run(
        partial(mingru_scan_2d, paths=PATHS, backend=backend), projected, cotangent=cotangent, device=device
    )
    assert (got['out'].shape, got['d_projected'].shape) == (cotangent.shape, projected.shape)


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
