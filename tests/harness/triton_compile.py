"""What compiled Triton kernels need of a GPU, without one."""

import re
import subprocess
from pathlib import Path

import pytest

from mmvisiongru.ops import triton_launch

needs_compiler = pytest.mark.skipif(
    triton_launch.INTERPRETED, reason='TRITON_INTERPRET is set: the kernels of this process are interpreted'
)


def cross_compile(kernel, arguments: dict, capability: int, options: dict):
    """Compile for a GPU of a capability, as a launch with such arguments would.

    ``arguments`` by name: a type ('*bf16') for a tensor, a number, None, or a tuple of such.
    Tensors and numbers count as multiples of 16, except for numbers that the kernel does not specialize.
    """
    import triton

    signature, constants, attributes = {}, {}, {}
    for i, param in enumerate(kernel.params):
        value = arguments[param.name]
        if param.is_constexpr:
            value = triton.language.constexpr(value)
        kinds = _describe(value, (i,), constants, attributes, not param.do_not_specialize)
        signature[param.name] = kinds
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    target = triton.backends.compiler.GPUTarget('cuda', capability, 32)
    return triton.compile(source, target=target, options=options)


def _describe(value, place: tuple[int, ...], constants: dict, attributes: dict, specialized: bool):
    """Type of an argument; what is known of its parts goes to ``constants`` and ``attributes`` by place."""
    import triton

    if isinstance(value, tuple):
        parts = [_describe(x, (*place, i), constants, attributes, True) for i, x in enumerate(value)]
        return type(value)(*parts) if hasattr(value, '_fields') else tuple(parts)
    if value is None or isinstance(value, triton.language.constexpr):
        constants[place] = getattr(value, 'value', None)
        return 'constexpr'
    if specialized:
        attributes[place] = [['tt.divisibility', 16]]
    return value if isinstance(value, str) else 'i32'


def spilled(binary, folder: Path) -> int:
    """Bytes of stack and local memory of a kernel, which uses no atomics."""
    import triton

    assert not re.search(r'\b(atom|red)\.', binary.asm['ptx'])
    tool = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump'
    if not tool.exists():
        pytest.skip(f'this build of Triton has no {tool.name}')
    cubin = folder / 'kernel.cubin'
    cubin.write_bytes(binary.asm['cubin'])
    command = [tool, '--dump-resource-usage', cubin]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(map(int, re.findall(r'(?:STACK|LOCAL):(\d+)', usage)))
