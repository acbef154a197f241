"""The token mixer of VisionGRU."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from mmvisiongru.ops.mingru import BACKENDS, mingru_scan_2d

from .channels_last import ChannelsLastConv2d


class MinGRU2D(nn.Module):
    r"""2DGRU token mixer (arXiv:2412.18178, section III-B and Algorithm 1).

    u = dwconv(x);   y = sum_p Wout_p minGRU(Win_p u read along path p).

    The input projections of all paths are one GEMM, the output projections and their sum another.

    Args:
        dim (int): Channels C.
        paths (Sequence[str]): Scan paths, see :func:`mmvisiongru.ops.mingru_scan_2d`.
        kernel_size (int, optional): Of the depthwise convolution; None for none.
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
        self.dwconv = nn.Identity()
        if kernel_size:
            self.dwconv = ChannelsLastConv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.in_proj = nn.Linear(dim, len(self.paths) * 2 * inner, bias=False)
        self.out_proj = nn.Linear(len(self.paths) * inner, dim, bias=False)
        # The fan-in of one path's projection, not of the fused matrix, sets its scale.
        nn.init.uniform_(self.out_proj.weight, -1 / math.sqrt(inner), 1 / math.sqrt(inner))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self.in_proj(self.dwconv(x))
        h = mingru_scan_2d(x, paths=self.paths, candidate=self.candidate, backend=self.backend)
        return self.out_proj(h)
