"""The token mixer of VisionGRU."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvisiongru.ops import mingru_scan_2d

from .conv import ChannelsLastConv2d
from .strips import strip_rows, worth_streaming


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
    """

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
        if not self.training and self._plain() and worth_streaming(x, self.in_proj, self.out_proj):
            return self._forward_strips(x)
        h = mingru_scan_2d(self.in_proj(x), paths=self.paths, candidate=self.candidate, backend=self.backend)
        return self.out_proj(h)

    def _plain(self) -> bool:
        """Whether nothing (quantisation, LoRA) stands between us and the projections' weights."""
        return type(self.in_proj) is type(self.out_proj) is nn.Linear

    def _forward_strips(self, x: Tensor) -> Tensor:
        """Project, scan and project back strip by strip: what is wide in between stays in the cache."""
        out = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        weights_in = self.in_proj.weight.chunk(len(self.paths), 0)
        weights_out = self.out_proj.weight.chunk(len(self.paths), 1)
        for path, w_in, w_out in zip(self.paths, weights_in, weights_out, strict=True):
            reverse = path.endswith('reverse')
            # A column path reads the transposed map by rows.
            source, target = ((t.transpose(1, 2) if path.startswith('column') else t) for t in (x, out))
            strips = list(zip(*(t.split(strip_rows(t), 1) for t in (source, target)), strict=True))
            state = None
            for strip, y in reversed(strips) if reverse else strips:
                h = mingru_scan_2d(
                    F.linear(strip, w_in),
                    paths=('row_reverse' if reverse else 'row',),
                    candidate=self.candidate,
                    backend=self.backend,
                    state=state,
                )
                state = h[:, 0, :1] if reverse else h[:, -1, -1:]
                part = F.linear(h, w_out)
                y += part
        return out.to(part.dtype)

    def extra_repr(self) -> str:
        return f'paths={self.paths}, candidate={self.candidate!r}, backend={self.backend!r}'
