"""Launch Triton kernels of ``triton_affine.py``: on which devices, and how to spread a map over a GPU.

A batch whose sequences fill the GPU, with up to ``MAX_WARPS`` warps each, is scanned in one launch. In other
cases, such as one large image, sequences are cut into chunks and scanned in three launches: the sum of each
chunk, the states between chunks, and the scan itself, which reads its input again.
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

# Read once, as Triton does: with its interpreter, kernels run on CPU tensors.
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'

STEPS = 8  # tokens of a row in registers, and as many being loaded
THREAD_LANES = 2  # channels per thread: 4-byte accesses in 16-bit types
WARP_LANES = 32 * THREAD_LANES
MAX_WARPS = 8  # per program, which scans one sequence
WARPS_PER_PROCESSOR = 16  # with 4 KiB in flight each, about twice what hides the memory latency of an H200
MIN_CHUNK = 32  # tokens; a chunk moves 24 bytes per channel, a token 10
# Chunks read their input twice: use them only for this many times the warps of a single launch.
MIN_GAIN = 4
# Registers per thread, by direction and warps per program, in a single launch: the most that the scan's
# kernels compile to for compute capability 8.0 and 9.0, in multiples of 8, as they are allocated.
REGISTERS = {False: {1: 80, 2: 96, 4: 120, 8: 128}, True: {1: 168, 2: 168, 4: 176, 8: 128}}
# Two programs of 8 warps fit on a processor only with a register limit, and backward with fewer steps.
LIMITED_WARPS, LIMITED_STEPS = 8, 4
PROCESSOR_REGISTERS, PROCESSOR_PROGRAMS = 65536, 32
# Use more warps per program, which synchronise in every tile, only if the predicted speed-up exceeds this.
MIN_SPEEDUP = 1.5
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
    # Triton compiles its launcher in C, against Python.h and libcuda.
    except subprocess.CalledProcessError as error:
        compiler = os.path.basename(str(error.cmd[0] if isinstance(error.cmd, list) else error.cmd))
        return (
            f"{compiler} cannot build Triton's launcher; are the headers of Python (python3-dev) installed?"
        )
    # Whatever fails, another backend can run.
    except Exception as error:
        return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'


@cache
def unsupported(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Reasons why kernels cannot run: they need Triton, compute capability 8.0, and 16 bits or float32."""
    reasons = []
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        reasons.append(f'{dtype} is not supported')
    if device.type == 'cuda':
        if not torch.cuda.is_available():
            reasons.append('no CUDA device')
        elif torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
            reasons.append('needs an NVIDIA GPU of compute capability 8.0 or later')
        # Compile a kernel only if nothing else is missing.
        elif not reasons and (reason := probe(device)):
            reasons.append(reason)
    elif device.type != 'cpu' or not INTERPRETED:
        reasons.append(f'tensors are on {device.type}')
    elif triton_version() < MIN_TRITON:
        reasons.append('Triton {}.{} or later is not installed'.format(*MIN_TRITON))
    return reasons


class Plan(NamedTuple):
    """Spread of a scan over a GPU: a program has ``warps`` warps for ``lanes`` channels of one sequence.

    A row has ``steps`` tokens in registers; ``registers`` limits those of a thread.
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
    """Programs that fit on a processor at a time."""
    return min(PROCESSOR_REGISTERS // (32 * warps * REGISTERS[backward][warps]), PROCESSOR_PROGRAMS)


def duration(programs: int, warps: int, processors: int, backward: bool) -> float:
    """Predicted time of a launch; the unit is the time of one program on a busy processor.

    Programs run in rounds of as many as fit. The last round takes as long as its fullest processor, and a
    processor with fewer than WARPS_PER_PROCESSOR warps waits for memory.
    """

    def round_of(n: int) -> float:
        return n / min(1, n * warps / WARPS_PER_PROCESSOR)

    fit = resident(warps, backward)
    rounds, rest = divmod(programs, fit * processors)
    return rounds * round_of(fit) + (round_of(-(-rest // processors)) if rest else 0)


def plan(sequences: int, length: int, inner: int, processors: int, backward: bool = False) -> Plan:
    """Plan a single launch, unless chunks would occupy at least MIN_GAIN times as many warps."""
    # The largest power of two that divides D leaves no lane idle; 16 lanes make a 32-byte sector.
    lanes = min(64, max(16, inner & -inner))
    programs = sequences * -(-inner // lanes)
    choices = [1]
    # No more rows than the sequence fills: others would idle.
    while choices[-1] < MAX_WARPS and choices[-1] * WARP_LANES * STEPS < length * lanes:
        choices.append(2 * choices[-1])
    most = choices[-1]
    times = {warps: duration(programs, warps, processors, backward) for warps in choices}
    rounds = {warps: programs / (resident(warps, backward) * processors) for warps in choices}
    # Avoid a second round of few programs: it takes as long as the first.
    even = [warps for warps in choices if not 1 < rounds[warps] < 1.5] or choices
    warps = min(warps for warps in even if times[warps] <= MIN_SPEEDUP * min(times[w] for w in even))
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
    """Grid and common arguments of the kernels, for maps of ``shape`` (B, H, W, P, D)."""
    B, H, W, P, D = shape
    assert H * W < MAX_TOKENS, f'{H} x {W} tokens'
    how = plan(B * P, H * W, D, processors, backward)
    # Bit masks over the paths.
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
