"""Multi-scale deformable attention (arXiv:2010.04159), section 4.1, without a compiled operator."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import constant_init, xavier_init
from torch import Tensor, nn

from mmvisiongru.ops.backends import accumulation_dtype


def cell_centres(shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device) -> Tensor:
    """Where the tokens of maps (H, W) lie in [0, 1], x first; the maps one after the other, (N, 2)."""
    centres = []
    for H, W in shapes:
        y, x = (((torch.arange(n, dtype=dtype, device=device) + 0.5) / n) for n in (H, W))
        centres.append(torch.stack(torch.meshgrid(x, y, indexing='xy'), -1).flatten(0, 1))
    return torch.cat(centres)


class DeformableAttention(nn.Module):
    r"""Each query reads a few places of several maps, which it chooses itself around its own.

    y_q = Wo sum_{l, p} a_{q, l, p} V_l(c_q + o_{q, l, p} / (W_l, H_l)),   a = softmax over l and p,

    by head, with V_l the map l of Wv x, read bilinearly and zero outside, and c_q the place of the query.

    Args:
        dim (int): Channels C.
        num_heads, levels, points (int): Heads, maps that are read, and places in each map.
        value_ratio (float): Width of V over C.
    """

    def __init__(self, dim: int, num_heads: int, levels: int, points: int, value_ratio: float):
        super().__init__()
        width = int(dim * value_ratio)
        if width < 1 or num_heads < 1 or width % num_heads:
            raise ValueError(f'heads must divide the width of the values, got {num_heads} for {width}')
        self.num_heads, self.levels, self.points = num_heads, levels, points
        self.sampling_offsets = nn.Linear(dim, num_heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * levels * points)
        self.value_proj = nn.Linear(dim, width)
        self.output_proj = nn.Linear(width, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Equal weights on points that lie 1, 2, ... cells away, in another direction for each head."""
        for layer in (self.sampling_offsets, self.attention_weights):
            constant_init(layer, 0)
        for layer in (self.value_proj, self.output_proj):
            xavier_init(layer, distribution='uniform')
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), 1)
        direction = direction / direction.abs().amax(1, keepdim=True)
        steps = torch.arange(1, self.points + 1).view(-1, 1) * direction.view(-1, 1, 1, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(steps.expand(-1, self.levels, -1, -1).flatten())

    def forward(self, query: Tensor, places: Tensor, x: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Queries (B, Q, C) at ``places`` (Q, 2), see :func:`cell_centres`, read ``x`` -> (B, Q, C).

        ``x`` (B, N, C) holds maps of ``shapes`` (H, W) one after the other.
        """
        B, Q, _ = query.shape
        # A place in 16 bit would be off by cells.
        dtype = accumulation_dtype(query.dtype)
        offsets = self.sampling_offsets(query).to(dtype)
        offsets = offsets.view(B, Q, self.num_heads, self.levels, self.points, 2)
        weights = self.attention_weights(query).to(dtype).unflatten(2, (self.num_heads, -1)).softmax(3)
        weights = weights.view(B, Q, self.num_heads, self.levels, self.points)
        values = self.value_proj(x).to(dtype).unflatten(2, (self.num_heads, -1))
        out = _read(values, shapes, places.view(Q, 1, 1, 2), offsets, weights)
        return self.output_proj(out.to(query.dtype))


def _read(values: Tensor, shapes, places: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of what is at all places, (B, Q, width), map by map."""
    B, _, heads = offsets.shape[:3]
    sums = 0
    maps = values.split([H * W for H, W in shapes], 1)
    for level, ((H, W), value) in enumerate(zip(shapes, maps, strict=True)):
        # Not one division by a tensor of both sides: torch 2.5 compiles that wrongly for any size.
        x, y = offsets[:, :, :, level].unbind(-1)
        grid = places + torch.stack((x / W, y / H), -1)
        # Heads beside images: (B * heads, Q, points, 2) and (B * heads, width / heads, H, W).
        grid = (2 * grid - 1).transpose(1, 2).flatten(0, 1)
        value = value.permute(0, 2, 3, 1).reshape(B * heads, value.size(3), H, W)
        read = F.grid_sample(value, grid, align_corners=False)
        sums = sums + (read * weights[:, :, :, level].transpose(1, 2).flatten(0, 1).unsqueeze(1)).sum(3)
    return sums.unflatten(0, (B, heads)).permute(0, 3, 1, 2).flatten(2)
