r"""A convolution of maps of different sizes that computes each map at its own resolution.

Heads such as UPerHead enlarge the maps of all stages to the size of the first one, join them and convolve the
result. Most of that work repeats itself on copies of a pixel. Interpolation U and convolution are linear and
act on space and on channels separately, so the channels can be mixed before the map is enlarged:

    conv(U x) = sum_j [sum_i S_i U_rows (W_ij x)] (S_j U_columns)^T

W_ij is the weight of tap (i, j), a matrix of output by input channels, and S the shift by a tap with zeros
beyond the border. One product with a matrix along each side both enlarges and shifts.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Output pixels along a side of a tile. A matrix of a side has output x input pixels, so that without tiles
# its cost would grow with the image. At 128 the map of a 512 x 512 image is one tile.
TILE = 128


class JoinedConv2d(nn.Conv2d):
    """Equals ``Conv2d(cat([resize(x, maps[0].shape[2:]) for x in maps], 1))``, without the joined map.

    Parameters and state-dict keys are those of ``nn.Conv2d``. Only stride 1, odd kernels and a padding that
    keeps the size are supported, which is what decode heads use.
    """

    mode, align_corners = 'bilinear', False

    @classmethod
    def replace(cls, conv: nn.Module, mode: str, align_corners: bool) -> 'JoinedConv2d':
        """A layer with the parameters of a plain ``nn.Conv2d``.

        Raises:
            ValueError: The layer is of another type, so a ``conv_cfg`` chose it.
        """
        if type(conv) is not nn.Conv2d:
            raise ValueError(
                f'heads of mmvisiongru convolve with nn.Conv2d, but conv_cfg gives {type(conv).__name__}; '
                "use mmseg's head of the same name"
            )
        sizes = conv.in_channels, conv.out_channels, conv.kernel_size
        joined = cls(*sizes, padding=conv.padding, bias=conv.bias is not None, device='meta')
        joined.weight, joined.bias = conv.weight, conv.bias
        joined.mode, joined.align_corners = mode, align_corners
        return joined

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i), the first one of the size of the output -> (B, N, H, W)."""
        size = maps[0].shape[2:]
        first, *shares = self.weight.split([x.shape[1] for x in maps], 1)
        out = F.conv2d(maps[0], first, self.bias, padding=self.padding)
        small = 0
        for x, weight in zip(maps[1:], shares, strict=True):
            if self.kernel_size == (1, 1):
                out = out + self._resize(F.conv2d(x, weight), size)
            elif is_cheaper(x.shape, size, weight.shape):
                small = small + mix_and_enlarge(x, weight, size, self.align_corners)
            else:
                out = out + F.conv2d(self._resize(x, size), weight, padding=self.padding)
        return out if isinstance(small, int) else out + small.permute(0, 3, 1, 2)

    def _resize(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(x, size, mode=self.mode, align_corners=self.align_corners)


def is_cheaper(shape: Sequence[int], size: Sequence[int], weight_shape: Sequence[int]) -> bool:
    """Whether mixing channels first takes fewer multiply-accumulates, counted for one output channel."""
    (_, C, h, w), (H, W), (*_, kh, kw) = shape, size, weight_shape
    # A graph for any size cannot branch on it.
    if not all(isinstance(n, int) for n in (h, w, H, W)):
        return True
    return kh * kw * C * h * w + kh * h * H * kw * w + kw * w * H * W < kh * kw * C * H * W


def mix_and_enlarge(x: Tensor, weight: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """``conv2d(interpolate(x, size), weight)``, padded to keep the size.

    Args:
        x (Tensor): (B, C, h, w).
        weight (Tensor): (N, C, kh, kw), kh and kw odd.
        size (Sequence[int]): H and W.
        align_corners (bool): As in ``F.interpolate``.

    Returns:
        Tensor: (B, H, W, N).
    """
    (B, C, h, w), (N, _, kh, kw), (H, W) = x.shape, weight.shape, size
    rows = shifted_enlargement(h, H, kh, align_corners, x)
    columns = shifted_enlargement(w, W, kw, align_corners, x).transpose(1, 2)
    # One matrix for each row of taps: its result has the taps of a row side by side.
    taps = weight.permute(2, 1, 3, 0).reshape(kh, C, kw * N)
    mixed = x.permute(0, 2, 3, 1).reshape(B, 1, h * w, C) @ taps
    enlarged = rows.reshape(H, kh * h) @ mixed.reshape(B, kh * h, w * kw * N)
    return columns.reshape(W, w * kw) @ enlarged.reshape(B, H, w * kw, N)


def shifted_enlargement(size: int, enlarged: int, taps: int, align_corners: bool, like: Tensor) -> Tensor:
    """The matrices (enlarged, taps, size) that enlarge a side bilinearly and then shift it by each tap."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    unit = torch.eye(size, dtype=dtype, device=like.device)
    # What an interpolation does to the unit vectors is its matrix.
    matrix = F.interpolate(unit[None, None], (size, enlarged), mode='bilinear', align_corners=align_corners)
    padded = F.pad(matrix[0, 0].T, (0, 0, taps // 2, taps // 2))
    return torch.stack([padded[i : i + enlarged] for i in range(taps)], 1).to(like.dtype)
