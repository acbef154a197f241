"""What compiled Triton kernels need of a GPU, without one."""

import re
import subprocess
from pathlib import Path

import pytest

from mmvisiongru.ops import triton_launch

needs_compiler = pytest.mark.skipif(
    triton_launch.INTERPRETED, reason='TRITON_INTERPRET is set: the kernels of this process are interpreted'
)
# What kernels need was noted for Triton 3.9. Under 3.3 and 3.6 they take up to 14 registers more: 9 programs
# of two warps fit on a processor, where a plan counts 10. The adjoint of Bi-WKV takes more stack as well.
OLDER = triton_launch.triton_version() < (3, 9)
MORE_REGISTERS, MORE_STACK = (16, 128) if OLDER else (0, 0)


def cross_compile(kernel, signature, constants, attributes, capability, options):
    """Compile for a GPU of a capability; constants and attributes by the number of the argument."""
    import triton

    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    target = triton.backends.compiler.GPUTarget('cuda', capability, 32)
    return triton.compile(source, target=target, options=options)


def resources(binary, folder: Path) -> dict[str, int]:
    """Registers of a thread, and bytes of stack and local memory, of a kernel that uses no atomics."""
    import triton

    assert not re.search(r'\b(atom|red)\.', binary.asm['ptx'])
    tool = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump'
    if not tool.exists():
        pytest.skip(f'this build of Triton has no {tool.name}')
    cubin = folder / 'kernel.cubin'
    cubin.write_bytes(binary.asm['cubin'])
    command = [tool, '--dump-resource-usage', cubin]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(n) for name, n in re.findall(r'(REG|STACK|LOCAL):(\d+)', usage)}
