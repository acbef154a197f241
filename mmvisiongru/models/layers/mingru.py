"""The token mixer of VisionGRU."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmvisiongru.ops import mingru_scan_2d
from mmvisiongru.ops.backends import accumulation_dtype
from mmvisiongru.ops.mingru.op import BACKENDS
from mmvisiongru.ops.scan_paths import PATHS

from .conv import ChannelsLastConv2d
from .linear import linear, product
from .strips import cast_once, row_strips, takes_strips


class MinGRU2D(nn.Module):
    r"""2DGRU token mixer (arXiv:2412.18178, section III-B and Algorithm 1).

    u = dwconv(x);   y = sum_p Wout_p minGRU(Win_p u read along path p).

    The input projections of all paths are one GEMM, the output projections and their sum another.

    Args:
        dim (int): Channels C.
        paths (Sequence[str]): Scan paths, see :func:`mmvisiongru.ops.mingru_scan_2d`.
        kernel_size (int, optional): Of the depthwise convolution; None leaves it out.
        expand_ratio (int): Inner width D over C.
        candidate (str): 'g' or 'linear', see :func:`mmvisiongru.ops.mingru_scan`.
        backend (str): Scan backend.

    Examples:
        The last pixel of an image changes the first one of the output, as the reverse path comes by:

        >>> import torch
        >>> from mmvisiongru.models.layers import MinGRU2D
        >>> mixer = MinGRU2D(dim=8)
        >>> x = torch.zeros(1, 5, 6, 8)
        >>> before = mixer(x)
        >>> x[0, -1, -1] = 9
        >>> bool((mixer(x)[0, 0, 0] != before[0, 0, 0]).any())
        True
    """

    backends = BACKENDS

    def __init__(
        self,
        dim: int,
        paths: Sequence[str] = ('row', 'row_reverse'),
        kernel_size: int | None = 3,
        expand_ratio: int = 2,
        candidate: str = 'g',
        backend: str = 'auto',
    ):
        super().__init__()
        self.paths, self.candidate, self.backend = tuple(paths), candidate, backend
        inner = dim * expand_ratio
        self.dwconv = (
            ChannelsLastConv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
            if kernel_size
            else nn.Identity()
        )
        self.in_proj = nn.Linear(dim, len(self.paths) * 2 * inner, bias=False)
        self.out_proj = nn.Linear(len(self.paths) * inner, dim, bias=False)
        # The fan-in of one path's projection, not of the fused matrix, sets its scale.
        nn.init.uniform_(self.out_proj.weight, -1 / math.sqrt(inner), 1 / math.sqrt(inner))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self.dwconv(x)
        if takes_strips(x, (self.in_proj, self.out_proj)) and self._is_unbiased():
            return self._forward_strips(x)
        u = linear(self.in_proj, x)
        h = mingru_scan_2d(u, paths=self.paths, candidate=self.candidate, backend=self.backend)
        return linear(self.out_proj, h)

    def _is_unbiased(self) -> bool:
        return self.in_proj.bias is None and self.out_proj.bias is None

    def _forward_strips(self, x: Tensor) -> Tensor:
        """Project, scan and project back strip by strip, path after path, by the projections' weights."""
        weights_in = cast_once(self.in_proj.weight).chunk(len(self.paths), 0)
        parts = cast_once(self.out_proj.weight).chunk(len(self.paths), 1)
        weights_out = [w.contiguous() for w in parts]
        # The sum over paths, which the whole output projection has inside. Of two it is rounded once anyway.
        dtype = weights_out[0].dtype
        out = torch.empty_like(x, dtype=dtype if len(self.paths) < 3 else accumulation_dtype(dtype))
        for p, (name, w_in, w_out) in enumerate(zip(self.paths, weights_in, weights_out, strict=True)):
            path, state = PATHS[name], None
            strips = zip(row_strips(path.by_rows(x)), row_strips(path.by_rows(out)), strict=True)
            for strip, y in path.in_order(list(strips)):
                h = mingru_scan_2d(
                    product(strip, w_in),
                    paths=(path.along_rows,),
                    candidate=self.candidate,
                    backend=self.backend,
                    state=state,
                )
                state = path.last(h)
                part = product(h, w_out)
                # A view of out, which is ours alone.
                y.add_(part) if p else y.copy_(part)
        return out.to(dtype)

    def extra_repr(self) -> str:
        return f'paths={self.paths}, candidate={self.candidate!r}, backend={self.backend!r}'
