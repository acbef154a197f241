"""Launch Triton kernels of ``triton_affine.py``: on which devices, and how to spread a map over a GPU.

A program scans one sequence with up to ``MAX_WARPS`` warps. Where that leaves most of the GPU idle, as for
one large image, sequences are cut into chunks and scanned in three launches: the sum of each chunk, the
states between chunks, and the scan itself, which reads its input again.
"""

import os
from contextlib import nullcontext
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch
from torch import Tensor

from .scan_paths import Path

# Read once, as Triton does: with its interpreter, kernels run on CPU tensors.
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'

STEPS = 8  # tokens of a row in registers, and as many being loaded
WARP_LANES = 64  # two channels per thread: 4-byte accesses in 16-bit types
MAX_WARPS = 8  # per program
CHUNK_WARPS = 4  # per program whose rows are chunks
WARPS_PER_PROCESSOR = 16  # with 4 KiB in flight each, about twice what hides the memory latency of an H200
MIN_CHUNK = 32  # tokens; a chunk moves 24 bytes per channel, a token 10
# Chunks read their input twice: use them only for this many times the warps of a single launch.
MIN_GAIN = 4
MAX_TOKENS = 1 << 30  # per sequence: token positions are 32-bit
MIN_TRITON = (3, 3)  # first version with tuples in kernels
# For the scan over chunks: 8 float32 make a memory sector, and 64 rows of them 8 warps.
STATES = dict(ROWS=64, LANES=8, num_warps=8)
OPTIONS = dict(num_stages=1, enable_fp_fusion=True)


def triton_version() -> tuple[int, ...]:
    """(major, minor) of the installed Triton, without importing it; (0, 0) if there is none."""
    try:
        return tuple(int(n) for n in version('triton').split('.')[:2])
    except PackageNotFoundError:
        return 0, 0


@cache
def unsupported(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Reasons why kernels cannot run: they need Triton, compute capability 8.0, and 16 bits or float32."""
    reasons = []
    if triton_version() < MIN_TRITON:
        reasons.append('Triton {}.{} or later is not installed'.format(*MIN_TRITON))
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        reasons.append(f'{dtype} is not supported')
    if device.type == 'cuda':
        nvidia = torch.cuda.is_available() and not torch.version.hip
        if not nvidia or torch.cuda.get_device_capability(device) < (8, 0):
            reasons.append('needs an NVIDIA GPU of compute capability 8.0 or later')
    elif device.type != 'cpu' or not INTERPRETED:
        reasons.append(f'tensors are on {device.type}')
    return reasons


def plan(sequences: int, length: int, inner: int, processors: int) -> tuple[int, int, int]:
    """Channels and warps of a program, and tokens of a chunk, which are all of them for a single launch."""
    # The largest power of two that divides D leaves no lane idle; 16 lanes make a 32-byte sector.
    lanes = min(64, max(16, inner & -inner))
    programs = sequences * -(-inner // lanes)
    wanted, warps = WARPS_PER_PROCESSOR * processors, 1
    # No more rows than the sequence fills: others would idle.
    while warps < MAX_WARPS and programs * warps < wanted and warps * WARP_LANES * STEPS < length * lanes:
        warps *= 2
    chunks = min(-(-wanted * WARP_LANES // (programs * lanes)), length // MIN_CHUNK)
    if chunks * lanes < MIN_GAIN * warps * WARP_LANES:
        return lanes, warps, length
    return lanes, CHUNK_WARPS, STEPS * -(-length // (chunks * STEPS))


@cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == 'cuda' else 1


@lru_cache(maxsize=1024)
def launch(shape: torch.Size, paths: tuple[Path, ...], backward: bool, processors: int):
    """Grid and common arguments of the kernels, for maps of ``shape`` (B, H, W, P, D)."""
    B, H, W, P, D = shape
    if H * W >= MAX_TOKENS:
        raise ValueError(f"scan backend 'triton' takes fewer than {MAX_TOKENS} tokens, got {H} x {W}")
    lanes, warps, chunk = plan(B * P, H * W, D, processors)
    rows, chunks = WARP_LANES * warps // lanes, -(-H * W // chunk)
    # Bit masks over the paths.
    column, reverse = (sum(x << p for p, x in enumerate(xs)) for xs in zip(*paths, strict=True))
    # time // H is time * magic >> shift, exactly, for every time below MAX_TOKENS.
    shift = 30 + (H - 1).bit_length()
    arguments = dict(D=D, lanes=B * P * D, L=H * W, W=W, magic=-(-(1 << shift) // H), shift=shift)
    arguments.update(chunk=chunk, chunks=chunks, STEPS=STEPS, ROWS=rows, LANES=lanes, P=P)
    arguments.update(COLUMN=column, REVERSE=reverse ^ ((1 << P) - 1) if backward else reverse)
    return (B * P * -(-D // lanes), -(-chunks // rows)), dict(arguments, num_warps=warps, **OPTIONS)


class Strides(NamedTuple):
    """Strides of image, token and path of a map (B, H, W, P, D), in elements."""

    image: int
    token: int
    path: int

    @classmethod
    def of(cls, x: Tensor) -> 'Strides':
        """Strides of a map, 0 for a dimension of size one."""
        B, H, W, P, _ = x.shape
        b, h, w, p, _ = x.stride()
        return cls(b if B > 1 else 0, w if W > 1 else h if H > 1 else 0, p if P > 1 else 0)


def same_layout(*maps: Tensor) -> tuple:
    """The maps, then their common strides; copies them in the rare case that strides differ."""
    rows_join = all(1 in x.shape[1:3] or x.stride(1) == x.size(2) * x.stride(2) for x in maps)
    if not rows_join or len(set(map(Strides.of, maps))) > 1:
        maps = tuple(x.contiguous() for x in maps)
    return *maps, Strides.of(maps[0])


def on(device: torch.device):
    """Context of launches on a device, as Triton launches on the current one."""
    return torch.cuda.device(device) if device.type == 'cuda' else nullcontext()
