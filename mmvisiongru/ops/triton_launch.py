"""Launching Triton kernels of ``triton_affine.py``: where they run, and how a map is spread over a GPU.

A pass is one launch where the sequences of a batch fill the GPU with up to ``MAX_WARPS`` warps each. Where
they do not, as for one large image, the sequences are cut into chunks and a pass is three launches: the sum
of each chunk, the states between chunks, and the scan itself, which reads its input again.
"""

import logging
import os
import subprocess
from contextlib import nullcontext
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch
from torch import Tensor

from .scan_paths import Path

log = logging.getLogger('mmvisiongru')

# As Triton does, read once: its interpreter then runs the kernels on CPU tensors.
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'

STEPS = 8  # tokens of a row in registers, and as many on their way
THREAD_LANES = 2  # channels of a thread: accesses of 4 bytes in 16-bit types
WARP_LANES = 32 * THREAD_LANES
MAX_WARPS = 8  # on the tile of one sequence
# 4 KiB on their way for each: about twice what hides the latency of an H200's memory.
WARPS_PER_PROCESSOR = 16
MIN_CHUNK = 32  # tokens; a chunk costs 24 bytes a channel, a token 10
# Chunks read their input twice: only for this many times the warps of one launch.
MIN_GAIN = 4
# Registers of a thread, by direction and warps of a program in one launch: the most that the scan's kernels
# compile to for compute capability 8.0 and 9.0, in steps of 8 as they are handed out.
REGISTERS = {False: {1: 80, 2: 96, 4: 120, 8: 128}, True: {1: 168, 2: 168, 4: 176, 8: 128}}
# Two programs of 8 warps share a processor only under a limit, and backward with fewer tokens in registers.
LIMITED_WARPS, LIMITED_STEPS = 8, 4
PROCESSOR_REGISTERS, PROCESSOR_PROGRAMS = 65536, 32
# The warps of a program wait for one another in every tile; more of them are to gain this much. Half of
# WARPS_PER_PROCESSOR hide the latency.
WORTH = 1.5
MAX_TOKENS = 1 << 30  # of a sequence: token numbers are 32-bit
MIN_TRITON = (3, 3)  # the first with tuples in kernels
# Of the scan over chunks: 8 float32 are a sector, and 64 rows of them 8 warps.
STATES = dict(ROWS=64, LANES=8, num_warps=8)
OPTIONS = dict(num_stages=1, enable_fp_fusion=True)


def triton_version() -> tuple[int, ...]:
    """(major, minor) of the installed Triton, which is not imported; (0, 0) if there is none."""
    try:
        return tuple(int(n) for n in version('triton').split('.')[:2])
    except PackageNotFoundError:
        return 0, 0


@cache
def probe(device: torch.device) -> str:
    """Why no kernel can be compiled and launched on a GPU, said once; '' if one can."""
    reason = _probe(device)
    if reason:
        log.warning("Triton cannot run on %s, 'torch' is used: %s", device, reason)
    return reason


def _probe(device: torch.device) -> str:
    if triton_version() < MIN_TRITON:
        return 'Triton {}.{} or later is not installed'.format(*MIN_TRITON)
    try:
        from . import triton_probe

        return '' if triton_probe.launch(device) else 'a kernel wrote a wrong number'
    # Triton builds its launcher with a C compiler, against Python.h and libcuda.
    except subprocess.CalledProcessError as error:
        compiler = os.path.basename(str(error.cmd[0] if isinstance(error.cmd, list) else error.cmd))
        return (
            f"{compiler} cannot build Triton's launcher; are the headers of Python (python3-dev) installed?"
        )
    # Whatever it is, there is a backend that needs none of this.
    except Exception as error:
        return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'


@cache
def unsupported(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Needs a working Triton, an NVIDIA GPU of capability 8.0 or later, and a 16-bit type or float32."""
    reasons = []
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        reasons.append(f'{dtype} is not supported')
    if device.type == 'cuda':
        if not torch.cuda.is_available():
            reasons.append('no CUDA device')
        elif torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
            reasons.append('needs an NVIDIA GPU of compute capability 8.0 or later')
        # Only what nothing else rules out is tried.
        elif not reasons and (reason := probe(device)):
            reasons.append(reason)
    elif device.type != 'cpu' or not INTERPRETED:
        reasons.append(f'tensors are on {device.type}')
    elif triton_version() < MIN_TRITON:
        reasons.append('Triton {}.{} or later is not installed'.format(*MIN_TRITON))
    return reasons


class Plan(NamedTuple):
    """Spread of a scan over a GPU: a program has ``warps`` warps for ``lanes`` channels of one sequence.

    ``steps`` tokens of a row are in registers, of which a thread has at most ``registers``, or any number.
    """

    lanes: int
    warps: int
    chunk: int
    chunks: int
    steps: int
    registers: int | None = None

    @property
    def rows(self) -> int:
        return WARP_LANES * self.warps // self.lanes


def resident(warps: int, backward: bool) -> int:
    """Programs that run on a processor at a time."""
    return min(PROCESSOR_REGISTERS // (32 * warps * REGISTERS[backward][warps]), PROCESSOR_PROGRAMS)


def duration(programs: int, warps: int, processors: int, backward: bool) -> float:
    """Time of a launch, in that of a program on a processor which is busy.

    Programs run in rounds of all that fit. The last round, of few, takes as long as its fullest processor. A
    processor with fewer than WARPS_PER_PROCESSOR warps waits for memory.
    """

    def round_of(n: int) -> float:
        return n / min(1, n * warps / WARPS_PER_PROCESSOR)

    fit = resident(warps, backward)
    rounds, rest = divmod(programs, fit * processors)
    return rounds * round_of(fit) + (round_of(-(-rest // processors)) if rest else 0)


def plan(sequences: int, length: int, inner: int, processors: int, backward: bool = False) -> Plan:
    """One launch, unless chunks would put at least MIN_GAIN times as many warps to work."""
    # The largest power of two that divides D leaves no lane idle; 16 make a sector of 32 bytes.
    lanes = min(64, max(16, inner & -inner))
    programs = sequences * -(-inner // lanes)
    choices = [1]
    # No more rows than hold the sequence: the others would idle.
    while choices[-1] < MAX_WARPS and choices[-1] * WARP_LANES * STEPS < length * lanes:
        choices.append(2 * choices[-1])
    most = choices[-1]
    times = {warps: duration(programs, warps, processors, backward) for warps in choices}
    rounds = {warps: programs / (resident(warps, backward) * processors) for warps in choices}
    # A second round of a few programs takes as long as the first.
    even = [warps for warps in choices if not 1 < rounds[warps] < 1.5] or choices
    warps = min(warps for warps in even if times[warps] <= WORTH * min(times[w] for w in even))
    wanted = WARPS_PER_PROCESSOR * processors
    chunks = min(-(-wanted * WARP_LANES // (programs * lanes)), length // MIN_CHUNK)
    if chunks * lanes < MIN_GAIN * most * WARP_LANES:
        if warps < LIMITED_WARPS:
            return Plan(lanes, warps, length, 1, STEPS)
        steps = min(STEPS, LIMITED_STEPS) if backward else STEPS
        return Plan(lanes, warps, length, 1, steps, REGISTERS[backward][warps])
    chunk = STEPS * -(-length // (chunks * STEPS))
    return Plan(lanes, 4, chunk, -(-length // chunk), STEPS)


@cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == 'cuda' else 1


@lru_cache(maxsize=1024)
def launch(shape: torch.Size, paths: tuple[Path, ...], backward: bool, processors: int):
    """Grid and arguments that kernels share for maps of ``shape`` (B, H, W, P, D) and a pass over them."""
    B, H, W, P, D = shape
    assert H * W < MAX_TOKENS, f'{H} x {W} tokens'
    how = plan(B * P, H * W, D, processors, backward)
    # One bit a path.
    column, reverse = (sum(x << p for p, x in enumerate(xs)) for xs in zip(*paths, strict=True))
    # time // H is time * magic >> shift, exactly, for every time below MAX_TOKENS.
    shift = 30 + (H - 1).bit_length()
    arguments = dict(D=D, lanes=B * P * D, L=H * W, W=W, magic=-(-(1 << shift) // H), shift=shift)
    arguments.update(chunk=how.chunk, chunks=how.chunks, STEPS=how.steps, ROWS=how.rows, LANES=how.lanes)
    arguments.update(P=P, COLUMN=column, REVERSE=reverse ^ ((1 << P) - 1) if backward else reverse)
    grid = (B * P * -(-D // how.lanes), -(-how.chunks // how.rows))
    limit = {} if how.registers is None else dict(maxnreg=how.registers)
    return grid, dict(arguments, num_warps=how.warps, **limit, **OPTIONS)


class Strides(NamedTuple):
    """Elements from image to image, token to token and path to path of a map (B, H, W, P, D)."""

    image: int
    token: int
    path: int

    @classmethod
    def of(cls, x: Tensor) -> 'Strides':
        """Those of a map, 0 where there is only one image, token or path."""
        B, H, W, P, _ = x.shape
        b, h, w, p, _ = x.stride()
        return cls(b if B > 1 else 0, w if W > 1 else h if H > 1 else 0, p if P > 1 else 0)


def alike(*maps: Tensor) -> tuple:
    """The maps, then the strides they share; copies maps of unlike layouts, which are rare."""
    rows_join = all(1 in x.shape[1:3] or x.stride(1) == x.size(2) * x.stride(2) for x in maps)
    if not rows_join or len(set(map(Strides.of, maps))) > 1:
        maps = tuple(x.contiguous() for x in maps)
    return *maps, Strides.of(maps[0])


def on(device: torch.device):
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == 'cuda' else nullcontext()
