"""What the framework asks of every operator: registration, one graph for all lengths, export, FLOPs."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# Of sequences: that of the first compilation, and others.
LENGTHS = (65, 40, 17, 12, 200)


def assert_registered(operator, samples: Iterable[tuple], device: str) -> None:
    """The framework's own checks of an operator, on samples of its arguments."""
    for args in samples:
        moved = [
            x.detach().to(device).requires_grad_(x.requires_grad) if torch.is_tensor(x) else x for x in args
        ]
        torch.library.opcheck(operator.default, tuple(moved))


def assert_one_graph(module: nn.Module, check: Callable) -> None:
    """A compiled module has one graph for all lengths; ``check(compiled, length)`` compares its numbers."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for length in LENGTHS[:3]:
        check(compiled, length)
    assert counter.frame_count == 1


def assert_compiles(module: nn.Module, check: Callable, backend: str = 'inductor') -> None:
    """A module compiles for one length without a break in its graph."""
    torch._dynamo.reset()
    check(torch.compile(module, fullgraph=True, backend=backend), LENGTHS[0])


def assert_exports(module: nn.Module, inputs: Callable, expected: Callable, limit: float, *operators) -> None:
    """An exported module calls each operator once, and is right at all lengths.

    ``inputs(length)`` are its arguments, of which those of three dimensions are sequences (B, L, D).
    """
    length, example = torch.export.Dim('length', min=2, max=4096), tuple(inputs(LENGTHS[0]))
    shapes = tuple({1: length} if x.dim() == 3 else None for x in example)
    program = torch.export.export(module, example, dynamic_shapes=shapes)
    targets = [node.target for node in program.graph.nodes if node.op == 'call_function']
    for operator in operators:
        assert targets.count(operator.default) == 1
    for n in LENGTHS:
        tensors = inputs(n)
        ref = expected(*(x.double() for x in tensors))
        found = (program.module()(*tensors) - ref).abs().max() / ref.abs().max()
        assert found <= limit, f'{n} tokens: max error {found:.2e} > {limit:.0e}'


def counted_flops(function: Callable[[], Tensor]) -> int:
    """FLOPs of a call as the framework counts them."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()
