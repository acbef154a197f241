"""Bi-WKV: every backend against the definition written here, from one token to a picture of 97344."""

import pytest
import torch

from mmvisiongru.ops import bi_wkv
from mmvisiongru.ops.wkv import runnable_backends
from tests.harness.scans import TOLERANCE, assert_within
from tests.harness.wkv import NAMES, by_sums, cases, expected, inputs, run_backend

SHAPES = [*((2, length, 5) for length in (1, 2, 31, 196)), (1, 100, 1), (5, 50, 7), (2, 33, 144), (9, 17, 96)]
REAL, HARD = (-5.0, 3.0), (-15.0, 15.0)


# ---- numbers


@pytest.mark.filterwarnings('ignore:.*does not have a deterministic implementation')
@pytest.mark.usefixtures('nan_in_new_memory')
@pytest.mark.parametrize('deviation', [1.0, 4.0])
@pytest.mark.parametrize('decay', [REAL, HARD], ids=['real', 'hard'])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize(('device', 'backend', 'dtype'), cases(*TOLERANCE))
def test_precision(device, backend, dtype, shape, decay, deviation):
    tensors = inputs(*shape, dtype, decay, deviation, seed=shape[1])
    assert_within(run_backend(backend, tensors, device), expected(tensors), dtype)


@pytest.mark.parametrize('deviation', [1.0, 4.0])
@pytest.mark.parametrize('decay', [REAL, HARD], ids=['real', 'hard'])
@pytest.mark.parametrize(('length', 'width'), [(4096, 6), (16384, 4), (97344, 2)])
# The loops of the reference make some forty calls a token.
@pytest.mark.parametrize(
    ('device', 'backend', 'dtype'),
    [case for case in cases(torch.float32, torch.bfloat16) if case[1] != 'reference'],
)
def test_precision_of_long_sequences(device, backend, dtype, length, width, decay, deviation):
    tensors = inputs(1, length, width, dtype, decay, deviation, seed=1)
    assert_within(run_backend(backend, tensors, device), expected(tensors, by_sums), dtype)


@pytest.mark.parametrize(('device', 'backend', 'dtype'), cases(torch.float64))
def test_every_length_up_to_several_chunks(device, backend, dtype):
    lengths = range(1, 200) if backend != 'reference' else (3, 64, 65)
    for length in lengths:
        tensors = inputs(1, length, 2, dtype, HARD, seed=length)
        assert_within(run_backend(backend, tensors, device), expected(tensors, by_sums), dtype)


@pytest.mark.parametrize('backend', runnable_backends()[:-1])
def test_results_do_not_depend_on_the_number_of_threads(backend, threads):
    tensors = inputs(2, 600, 130)
    threads(1)
    one = run_backend(backend, tensors)
    threads(3)
    assert all(torch.equal(x, one[name]) for name, x in run_backend(backend, tensors).items())


@pytest.mark.parametrize('length', [1, 2, 31, 33, 100, 196])
@pytest.mark.parametrize(
    ('device', 'backend', 'dtype'), cases(torch.float64, torch.float32, distance='released')
)
def test_released_distance_has_exact_gradients(device, backend, dtype, length):
    tensors = inputs(2, length, 4, dtype, seed=length)
    got = run_backend(backend, tensors, device, distance='released')
    assert_within(got, expected(tensors, distance='released'), dtype)


# Exponents -w T and u that are as far apart as a backend allows, with keys that are farther apart.
@pytest.mark.parametrize('length', [2, 3, 10, 20, 150])
@pytest.mark.parametrize(('decay', 'bonus'), [(64, -64), (-64, 0), (32, 32)], ids=str)
@pytest.mark.parametrize(('device', 'backend', 'dtype'), cases(torch.float32))
def test_up_to_the_limit(device, backend, dtype, decay, bonus, length):
    w, u, k, v, grad = inputs(2, length, 3, dtype, deviation=10.0)
    tensors = [torch.full_like(w, decay / length), torch.full_like(u, bonus), k, v, grad]
    got, ref = run_backend(backend, tensors, device), expected(tensors)
    for name in NAMES:
        # A token whose own weight is e^30 of all others depends on w, u and k to 1e-13 only.
        scale = 1 if name in ('dw', 'du', 'dk') else 0
        found = (got[name].cpu() - ref[name]).abs().max() / ref[name].abs().max().clamp(min=scale)
        assert found <= TOLERANCE[dtype][1], (name, found)


def test_the_reference_has_no_limit():
    w, u, k, v, _ = inputs(1, 40, 3, torch.float64)
    w = torch.tensor([-1e5, 0.0, 1e5])
    y = bi_wkv(w, u, k, v, backend='reference')
    # All weight is on the farthest tokens, or on the neighbours and the token itself.
    farthest = torch.where(torch.arange(40) < 20, v[0, -1, 0], v[0, 0, 0])
    torch.testing.assert_close(y[0, :, 0], farthest)
    near = slice(19, 22)
    weights = torch.stack((k[0, 19, 2], k[0, 20, 2] + u[2], k[0, 21, 2])).softmax(0)
    torch.testing.assert_close(y[0, 20, 2], (weights * v[0, near, 2]).sum())


@pytest.mark.parametrize(('device', 'backend', 'dtype'), cases(torch.float32))
def test_loud_keys(device, backend, dtype):
    # exp(200) is beyond float32, and keys of which only one counts leave a single value.
    w, u, k, v, grad = inputs(1, 130, 3, dtype)
    shifted = run_backend(backend, (w, u, k + 200, v, grad), device)
    assert_within(shifted, expected((w, u, (k + 200), v, grad)), dtype)
    k[:, 70] = 90
    y = bi_wkv(*(x.to(device) for x in (w, u, k, v)), backend=backend)
    torch.testing.assert_close(y.cpu(), v[:, 70:71].expand_as(v))


# ---- memory


@pytest.mark.parametrize(('device', 'backend', 'dtype'), cases(torch.float32, torch.bfloat16))
def test_layout_does_not_matter(device, backend, dtype):
    w, u, k, v, grad = inputs(2, 70, 6, dtype)
    layouts = {
        'halves of one projection': torch.cat((k, v), 2).chunk(2, 2),
        'channels first': [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v)],
        'every other token': [torch.stack((x, x), 2).flatten(1, 2)[:, ::2] for x in (k, v)],
        'one image for all': [x[:1].expand(2, -1, -1) for x in (k, v)],
    }
    batch_last = grad.transpose(0, 1).contiguous().transpose(0, 1)
    for layout, (k, v) in layouts.items():
        got = run_backend(backend, (w, u, k, v, batch_last), device)
        same = run_backend(backend, (w, u, k.contiguous(), v.contiguous(), grad), device)
        assert all(torch.equal(got[name], same[name]) for name in NAMES), layout


@pytest.mark.parametrize('shape', [(0, 5, 3), (2, 0, 3), (2, 5, 0)], ids=str)
@pytest.mark.parametrize('backend', ['auto', 'torch', 'reference'])
def test_nothing_to_average(shape, backend):
    tensors = [torch.rand(size) for size in (shape[2], shape[2], shape, shape, shape)]
    got = run_backend(backend, tensors)
    assert got['y'].shape == shape
    assert all(x.isfinite().all() for x in got.values())
    assert not got['dw'].any()
    assert not got['du'].any()


# ---- bad input


def bad(**changes):
    tensors = dict(zip('wukv', inputs(2, 6, 3)[:4], strict=True))
    return {**tensors, **changes}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(w=torch.rand(3).half()), r'w must be float32 or float64 on cpu, got torch.float16 on cpu'),
        (dict(u=torch.rand(3).bfloat16()), r'u must be float32 or float64 on cpu, got torch.bfloat16'),
        (dict(w=torch.rand(4)), r'w must be \(C,\) = \(3,\), got \(4,\)'),
        (dict(u=torch.rand(1, 3)), r'u must be \(C,\) = \(3,\), got \(1, 3\)'),
        (dict(k=torch.rand(2, 5, 3)), r'k and v.* got \(2, 5, 3\) and \(2, 6, 3\)'),
        (dict(k=torch.rand(6, 3), v=torch.rand(6, 3)), r'k and v.* got \(6, 3\)'),
        (dict(v=torch.rand(2, 6, 3).double()), r'k and v.* got torch.float32 .* torch.float64'),
        (dict(k=torch.ones(2, 6, 3).long(), v=torch.ones(2, 6, 3).long()), r'got torch.int64'),
        (dict(distance='manhattan'), r"distance .* \('paper', 'released'\), got 'manhattan'"),
        (dict(backend='cuda'), r"bi_wkv backend .*'torch'.* got 'cuda'"),
        (dict(distance='released', backend='cpu'), r"\('auto', 'torch', 'reference'\), got 'cpu'"),
        (dict(w=torch.tensor([0.0, -20, 0]), backend='torch'), r"-w T.* 64 .* 120.*'reference'"),
        (dict(w=torch.zeros(3), u=torch.tensor([0.0, 0, 65])), r" u .* 64 .* 65.*'reference'"),
        (dict(w=torch.tensor([0.0, torch.nan, 0]), backend='torch'), r"-w T.* nan.*'reference'"),
        # Each alone is allowed.
        (dict(w=torch.full((3,), 64 / 6), u=torch.full((3,), 64.0)), r"-w T.* u .* 64 .* 128.*'reference'"),
    ],
    # Random values in the names of tests would differ between the processes that run them.
    ids=lambda x: x if isinstance(x, str) else '-'.join(x),
)
def test_bad_input_is_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as raised:
        bi_wkv(**bad(**changes))
    assert '\n' not in str(raised.value)


def test_float64_holds_larger_decays():
    _, *others = inputs(1, 20, 2, torch.float64)
    tensors = (torch.tensor([-30.0, 31.0]).double(), *others)
    ref = run_backend('reference', tensors)
    assert_within(run_backend('torch', tensors), ref, torch.float64)
