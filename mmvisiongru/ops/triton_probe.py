"""The smallest kernel: whether Triton compiles and launches one at all. Importing this needs Triton."""

import torch
import triton
import triton.language as tl


@triton.jit
def fill(x):
    """Write a one."""
    tl.store(x, 1.0)


def launch(device: torch.device) -> bool:
    """Whether a kernel that was compiled and launched wrote what it should."""
    x = torch.zeros(1, device=device)
    with torch.cuda.device(device):
        fill[(1,)](x)
    return x.item() == 1
