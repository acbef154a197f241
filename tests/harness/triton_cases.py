"""Small scans that reach every code path of the Triton kernels."""

from typing import NamedTuple

import torch

from tests.harness.scans import PATHS, ROWS, normal

H200 = 132  # processors


class Case(NamedTuple):
    """Scan of (B, H, W, D) by a small GPU's plan, and the rows and chunks that it is to have."""

    shape: tuple[int, int, int, int]
    rows: int
    chunks: int = 1
    paths: tuple[str, ...] = ('row',)
    candidate: str = 'g'
    dtype: torch.dtype = torch.float32
    state: bool = False
    gate_scale: float = 1.0
    limits: dict = {}


# Few tokens a row and a warp make many tiles of a short sequence.
ONE_WARP, FOUR_WARPS = dict(STEPS=2, MAX_WARPS=1), dict(STEPS=2, MAX_WARPS=4)
CHUNKS = dict(STEPS=2, MAX_WARPS=1, MIN_CHUNK=4, MIN_GAIN=2)
CASES = {
    'one token': Case((2, 1, 1, 16), rows=4, paths=ROWS),
    'one row': Case((1, 3, 3, 64), rows=1, limits=ONE_WARP),
    'one row, linear, state': Case((1, 3, 3, 64), 1, candidate='linear', state=True, limits=ONE_WARP),
    'exchange, tail': Case((1, 3, 7, 16), rows=4, paths=ROWS, limits=ONE_WARP),
    'exchange over warps': Case((1, 5, 9, 16), rows=16, paths=('row_reverse',), limits=FOUR_WARPS),
    'exchange, eight steps': Case((1, 4, 9, 32), rows=2, limits=dict(MAX_WARPS=1)),
    # Backward, half of the steps: other tiles than forward.
    'eight warps': Case((1, 10, 21, 16), rows=32, paths=ROWS),
    'eight warps, columns, masked': Case((1, 11, 14, 20), rows=32, paths=PATHS[2:]),
    'exchange, linear, state': Case((2, 2, 5, 16), 4, candidate='linear', state=True, limits=ONE_WARP),
    'columns, masked channels': Case((1, 4, 3, 20), rows=4, paths=PATHS, limits=ONE_WARP),
    'columns of one token, one channel': Case((1, 1, 9, 1), 4, paths=PATHS[2:], limits=ONE_WARP),
    'rows of one token': Case((1, 9, 1, 3), rows=4, paths=PATHS[1:3], limits=ONE_WARP),
    'chunks': Case((1, 6, 9, 16), rows=16, chunks=9, paths=ROWS, limits=CHUNKS),
    'chunks, columns, masked, state': Case((1, 8, 11, 20), 16, 22, PATHS[2:], state=True, limits=CHUNKS),
    'chunks, linear': Case((2, 6, 9, 16), rows=16, chunks=9, candidate='linear', limits=CHUNKS),
    # More than the 64 rows of chunk_states hold at once.
    'many chunks': Case((1, 8, 17, 3), 16, 68, limits=dict(STEPS=1, MAX_WARPS=1, MIN_CHUNK=2)),
    'saturated': Case((1, 3, 7, 16), rows=4, paths=ROWS, gate_scale=20.0, limits=ONE_WARP),
    'bfloat16': Case((1, 3, 7, 32), rows=2, paths=ROWS, dtype=torch.bfloat16, limits=ONE_WARP),
    'float16': Case((1, 3, 7, 32), rows=2, paths=ROWS, dtype=torch.float16, limits=ONE_WARP),
    'bfloat16, chunks': Case((1, 6, 9, 16), 16, 9, PATHS[3:], dtype=torch.bfloat16, limits=CHUNKS),
}


def inputs_of(case):
    B, H, W, D = case.shape
    P = len(case.paths)
    projected, cotangent = (normal(B, H, W, P * n * D, number=1)[0] for n in (2, 1))
    projected.unflatten(3, (P, 2, D))[..., 1, :] *= case.gate_scale
    state = normal(B, P, D, number=1, seed=1)[0] if case.state else None
    return projected.to(case.dtype), cotangent.to(case.dtype), state
