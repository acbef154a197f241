"""The smallest kernel, to find out whether Triton compiles and launches any. Importing this needs Triton."""

import torch
import triton
import triton.language as tl


@triton.jit
def fill(x):
    """Write a one."""
    tl.store(x, 1.0)


def launch(device: torch.device) -> bool:
    """Compile and launch the kernel; True if it wrote the right value."""
    x = torch.zeros(1, device=device)
    with torch.cuda.device(device):
        fill[(1,)](x)
    return x.item() == 1
