"""Both operators in the framework: registration, gradients, compilers, export, autocast, FLOPs."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmvisiongru.ops import bi_wkv, mingru_scan, mingru_scan_2d, runnable_backends
from mmvisiongru.ops.wkv import runnable_backends as wkv_backends
from tests.harness.scans import DEVICES, PATHS, TOLERANCE, composed_2d, error, loop_scan, normal, transposed
from tests.harness.wkv import by_sums, inputs

OPS = torch.ops.mmvisiongru
ON_EACH_DEVICE = pytest.mark.parametrize('device', DEVICES)
# Of sequences: that of the first compilation, and others.
LENGTHS = (65, 40, 17, 12, 200)


def samples():
    """Arguments of each operator and of the operator of its gradient."""
    gate, hidden, grad = normal(2, 9, 3)
    h, strided, names = mingru_scan(gate, hidden), (transposed(gate), transposed(hidden)), ','.join(PATHS)
    (projected,) = normal(2, 3, 4, len(PATHS) * 6, number=1)
    states = mingru_scan_2d(projected, paths=PATHS)
    w, u, k, v, dy = inputs(2, 9, 3)
    wide = [x.double() for x in (w, u, k, v)]
    return {
        'mingru_scan': [
            (gate, hidden, False, 'g', 'auto'),
            (gate.double(), hidden.double(), True, 'linear', 'auto'),
            (*strided, True, 'g', 'auto'),
            (gate[:, :0], hidden[:, :0], False, 'g', 'auto'),
        ],
        'mingru_scan_backward': [
            (grad, gate, hidden, h, False, 'g', 'auto'),
            (grad[:1, :1, :1].expand(2, 9, 3), *strided, h, True, 'linear', 'auto'),
        ],
        'mingru_scan_2d': [
            (projected, names, 'g', 'auto'),
            (projected.transpose(1, 2), 'row,row_reverse,column', 'linear', 'auto'),
            (projected, names, 'g', 'auto', torch.ones(2, len(PATHS), 3)),
        ],
        'mingru_scan_2d_backward': [
            (torch.ones_like(states), projected, states, names, 'g', 'auto'),
            (torch.ones(()).expand(states.shape), projected, states, names, 'linear', 'auto'),
        ],
        'bi_wkv': [
            (w, u, k, v, 'paper', 'auto'),
            (*wide, 'released', 'auto'),
            (w, u, transposed(k), transposed(v), 'paper', 'torch'),
            (*wide[:2], k.bfloat16(), v.bfloat16(), 'paper', 'auto'),
            (w, u, k[:, :0], v[:, :0], 'paper', 'auto'),
        ],
        'bi_wkv_backward': [
            (dy, w, u, k, v, 'paper', 'auto'),
            (dy[:1, :1, :1].expand(2, 9, 3), w, u, transposed(k), v, 'released', 'auto'),
            (dy[:, :0], w, u, k[:, :0], v[:, :0], 'paper', 'auto'),
        ],
    }


@ON_EACH_DEVICE
@pytest.mark.parametrize('name', list(samples()))
def test_opcheck(name, device):
    for args in samples()[name]:
        # A scan from a state has no gradient.
        wanted = not name.endswith('backward') and not (name == 'mingru_scan_2d' and len(args) > 4)
        moved = [x.to(device).requires_grad_(wanted) if torch.is_tensor(x) else x for x in args]
        torch.library.opcheck(getattr(OPS, name).default, tuple(moved))


# ---- compilers: modules with something to do around the operators, and the same by definition


class Scans(nn.Module):
    """Both public functions of the scan."""

    def forward(self, gate, hidden):
        h = mingru_scan(gate * 1.5, hidden.tanh(), reverse=True)
        B, L, D = h.shape
        x = torch.cat((h, gate, hidden, h + 1), -1).view(B, 1, L, 4 * D)
        return mingru_scan_2d(x, candidate='linear').sin()


def scans_by_loop(gate, hidden):
    h = loop_scan(gate * 1.5, hidden.tanh(), reverse=True)
    x = torch.cat((h, gate, hidden, h + 1), -1)[:, None]
    return composed_2d(x, ('row', 'row_reverse'), 'linear').sin()


class Averages(nn.Module):
    def forward(self, w, u, k, v):
        return bi_wkv(w / k.size(1), u / k.size(1), k * 1.5, v.tanh()).sin()


def averages_by_definition(w, u, k, v):
    return by_sums(w / k.size(1), u / k.size(1), k * 1.5, v.tanh()).sin()


def averages_inputs(length):
    w, u, *others = inputs(2, length, 3, seed=length)[:4]
    return [w * length, u * length, *others]


MODULES = {
    'scan': (
        Scans,
        scans_by_loop,
        lambda n: normal(2, n, 3, number=2, seed=n),
        ('mingru_scan', 'mingru_scan_2d'),
    ),
    'bi_wkv': (Averages, averages_by_definition, averages_inputs, ('bi_wkv',)),
}
EACH_MODULE = pytest.mark.parametrize('name', MODULES)


def results(function, tensors):
    """Output, and gradients of all inputs for a cotangent that depends on its shape only."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, normal(*out.shape, number=1)[0].to(out))]


def assert_right(got, ref, dtype=torch.float32):
    measure, limit = TOLERANCE[dtype]
    for n, (x, expected) in enumerate(zip(got, ref, strict=True)):
        assert error(x, expected, measure) <= limit, n


def assert_compiled(name, length, compiled, device):
    _, by_definition, tensors, _ = MODULES[name]
    got = results(compiled, [x.to(device) for x in tensors(length)])
    assert_right(got, results(by_definition, [x.double() for x in tensors(length)]))


@ON_EACH_DEVICE
@EACH_MODULE
def test_compile_makes_one_graph_for_all_lengths(name, device):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(MODULES[name][0](), fullgraph=True, dynamic=True, backend=counter)
    for length in LENGTHS[:3]:
        assert_compiled(name, length, compiled, device)
    assert counter.frame_count == 1


# A cold C++ compilation of the elementwise code around the operator.
@pytest.mark.long
@ON_EACH_DEVICE
@EACH_MODULE
def test_compile_inductor(name, device):
    torch._dynamo.reset()
    assert_compiled(name, LENGTHS[0], torch.compile(MODULES[name][0](), fullgraph=True), device)


@EACH_MODULE
def test_export_holds_each_operator_once_for_all_lengths(name):
    module, by_definition, tensors, operators = MODULES[name]
    example, length = tuple(tensors(LENGTHS[0])), torch.export.Dim('length', min=2, max=4096)
    shapes = tuple({1: length} if x.dim() == 3 else None for x in example)
    program = torch.export.export(module(), example, dynamic_shapes=shapes)
    targets = [node.target for node in program.graph.nodes if node.op == 'call_function']
    assert [targets.count(getattr(OPS, operator).default) for operator in operators] == [1] * len(operators)
    for n in LENGTHS:
        x = tensors(n)
        assert_right([program.module()(*x)], [by_definition(*(t.double() for t in x))])


# ---- types and costs


@pytest.mark.parametrize('name', ['mingru_scan', 'bi_wkv'])
def test_autocast(name):
    """The operator keeps the type that it is given, which behind a linear layer is bfloat16."""
    w, u, *others = inputs(2, 65, 3)
    wkv = name == 'bi_wkv'
    for backend in (wkv_backends if wkv else runnable_backends)('cpu', torch.bfloat16):
        operator = partial(bi_wkv, w, u, backend=backend) if wkv else partial(mingru_scan, backend=backend)
        reference = partial(by_sums, w.double(), u.double()) if wkv else loop_scan
        plain = results(operator, others[:2])
        torch.manual_seed(0)
        linear, x = nn.Linear(8, 6, bias=False), torch.randn(2, 65, 8)
        with torch.autocast('cpu', torch.bfloat16):
            assert all(map(torch.equal, plain, results(operator, others[:2])))
            projected = linear(x).detach()
            got = results(operator, projected.chunk(2, -1))
            operator(*linear(x).chunk(2, -1)).sum().backward()
        assert {t.dtype for t in got} == {torch.bfloat16}
        assert_right(got, results(reference, projected.double().chunk(2, -1)), torch.bfloat16)
        assert linear.weight.grad.dtype == torch.float32


def test_inference_mode():
    gate, hidden = normal(2, 65, 3, number=2)
    tensors = inputs(2, 65, 3)[:4]
    with torch.inference_mode():
        got = mingru_scan(gate, hidden), bi_wkv(*tensors)
    assert_right(got, (loop_scan(gate.double(), hidden.double()), by_sums(*(x.double() for x in tensors))))


def test_flop_counter_sees_the_operators():
    (gate, hidden), (projected,) = normal(2, 50, 3, number=2), normal(2, 5, 10, len(PATHS) * 2 * 3, number=1)
    elements = gate.numel()
    # Scan: (1 - z) h + z c is two multiply-adds per element. Bi-WKV: x v, and numerator and denominator of
    # past, future and token, 7. Backward costs two and three times as much.
    for function, tensors, forward, both in (
        (mingru_scan, (gate, hidden), 4, 3 * 4),
        (partial(mingru_scan_2d, paths=PATHS), (projected,), 4 * len(PATHS), 12 * len(PATHS)),
        (bi_wkv, inputs(2, 50, 3)[:4], 14, 4 * 14),
    ):
        for call, expected in (
            (lambda f=function, x=tensors: f(*x), forward),
            (partial(results, function, tensors), both),
        ):
            with FlopCounterMode(display=False) as counter:
                call()
            assert counter.get_total_flops() == expected * elements
