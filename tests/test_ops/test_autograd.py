"""Derivatives of operators and layers under torch.func, forward mode and compiled backward passes."""

from functools import partial

import pytest
import torch
from torch._dynamo import compiled_autograd
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

from mmvisiongru.models.layers import MLP, MinGRU2D, SpatialMix
from mmvisiongru.ops import bi_wkv, mingru_scan, mingru_scan_2d
from tests.harness.scans import PATHS, composed_2d, loop_scan, normal
from tests.harness.wkv import by_weights, inputs

SCAN = normal(2, 5, 3, dtype=torch.float64, number=2)
MAP = normal(2, 3, 2, len(PATHS) * 2 * 2, dtype=torch.float64, number=1)
WKV = inputs(2, 5, 3, torch.float64)[:4]
# Each operator, the same made of operators that torch differentiates, the inputs, and options of both.
OPERATORS = {
    'mingru_scan': (mingru_scan, loop_scan, SCAN, {}),
    'mingru_scan linear': (mingru_scan, loop_scan, SCAN, dict(reverse=True, candidate='linear')),
    'mingru_scan_2d': (mingru_scan_2d, composed_2d, MAP, dict(paths=PATHS)),
    'bi_wkv': (bi_wkv, by_weights, WKV, {}),
    'bi_wkv released': (bi_wkv, by_weights, WKV, dict(distance='released')),
}
EACH = pytest.mark.parametrize('name', OPERATORS)
# By the number of inputs.
IN_DIMS = {
    1: [(0,), (2,)],
    2: [(0, 0), (1, None), (None, 2), (-1, 0)],
    4: [(None, None, 0, 0), (0, 1, None, 2), (None, 0, -1, None)],
}


def operator_and_reference(name):
    operator, reference, tensors, options = OPERATORS[name]
    return partial(operator, **options), partial(reference, **options), tensors


@EACH
def test_jacobians(name):
    *both, tensors = operator_and_reference(name)
    got, ref = (jacrev(f, tuple(range(len(tensors))))(*tensors) for f in both)
    torch.testing.assert_close(got, ref)


@EACH
def test_vmap(name):
    *both, tensors = operator_and_reference(name)
    for dims in IN_DIMS[len(tensors)]:
        pairs = zip(tensors, dims, strict=True)
        mapped = [x if d is None else torch.stack([x, 2 * x, -x], d) for x, d in pairs]
        got, ref = (vmap(f, dims)(*mapped) for f in both)
        torch.testing.assert_close(got, ref)


LAYERS = {
    'MinGRU2D': lambda: MinGRU2D(6, PATHS),
    'SpatialMix': lambda: SpatialMix(6, 1, 3, key_norm=False, distance='paper', backend='auto'),
    'MLP': lambda: MLP(6, 4),
}


@pytest.mark.parametrize('name', LAYERS)
def test_gradients_of_single_samples(name):
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    parameters, (x, cotangent) = dict(layer.named_parameters()), torch.randn(2, 3, 4, 5, 6).double()

    def loss(parameters, x, cotangent):
        return (functional_call(layer, parameters, x[None])[0] * cotangent).sum()

    got = vmap(grad(loss), (None, 0, 0))(parameters, x, cotangent)
    for i in range(len(x)):
        ref = torch.autograd.grad((layer(x[i : i + 1])[0] * cotangent[i]).sum(), list(parameters.values()))
        for key, value in zip(parameters, ref, strict=True):
            torch.testing.assert_close(got[key][i], value)


def dual_numbers(f, x):
    with forward_ad.dual_level():
        return f(forward_ad.make_dual(x, x))


FORWARD_MODE = {
    'dual numbers': dual_numbers,
    'no_grad': torch.no_grad()(dual_numbers),
    'jvp': lambda f, x: jvp(f, (x,), (x,)),
    'jvp of vmap': lambda f, x: jvp(vmap(f), (torch.stack((x, x)),), (torch.stack((x, x)),)),
    'jvp of grad': lambda f, x: jvp(grad(lambda x: f(x).sum()), (x,), (x,)),
}
SECOND = {
    'autograd': lambda f, x: torch.autograd.functional.hessian(lambda x: f(x).sum(), x),
    'compiled': lambda f, x: torch.autograd.functional.hessian(
        torch.compile(lambda x: f(x).sum(), backend='eager'), x
    ),
    'hessian': lambda f, x: hessian(lambda x: f(x).sum())(x),
}


@pytest.mark.parametrize('how', [*FORWARD_MODE, *SECOND])
@pytest.mark.parametrize('argument', [0, -1])
@EACH
def test_other_derivatives_are_refused_in_one_line(name, argument, how):
    operator, _, tensors = operator_and_reference(name)

    def of_one(x):
        return operator(*tensors[:argument], x, *(tensors[argument + 1 :] if argument >= 0 else ()))

    with pytest.raises(RuntimeError, match=f'^{name.split()[0]} has .*forward.mode.*') as raised:
        (FORWARD_MODE | SECOND)[how](of_one, tensors[argument])
    assert '\n' not in str(raised.value)


@EACH
def test_compiled_backward(name):
    operator, reference, tensors = operator_and_reference(name)
    leaves = [x.clone().requires_grad_() for x in tensors]
    ref = torch.autograd.grad(reference(*leaves).sin().sum(), leaves)
    out = operator(*leaves).sin().sum()
    torch._dynamo.reset()
    enable = getattr(compiled_autograd, '_enable', None) or compiled_autograd.enable
    with enable(torch.compile(backend='aot_eager', fullgraph=True)):
        out.backward()
    torch.testing.assert_close([x.grad for x in leaves], list(ref))
