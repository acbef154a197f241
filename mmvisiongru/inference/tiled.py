"""Parts of VisionGRU that take a large map through their layers tile by tile.

A layer that widens its input writes and reads a multiple of the map. A tile of rows stays in the cache
meanwhile, and the widened map never exists as a whole.
"""

import torch
from torch import Tensor

from mmvisiongru._compat import linear
from mmvisiongru.models.layers import MinGRU2D
from mmvisiongru.models.visiongru import Block, Stem
from mmvisiongru.ops import mingru_scan_2d
from mmvisiongru.ops.backends import accumulation_dtype
from mmvisiongru.ops.scan_paths import PATHS

from .form import InferenceForm, MixerForm

# Tokens of a tile: enough for a product of matrices to run at full speed, few enough to stay in the cache.
TILE_TOKENS = 2048


def is_large(height: int, width: int) -> bool:
    """Whether tiles pay on a map of this size."""
    return height * width >= 4 * TILE_TOKENS


def tile_lines(length: int) -> int:
    """Rows, or columns, of a tile, given their length."""
    return max(1, TILE_TOKENS // length)


def tiles_of(x: Tensor, column: bool = False) -> tuple[Tensor, ...]:
    """Split a map (B, H, W, C) into tiles of rows or of columns, which are views of it."""
    return x.split(tile_lines(x.size(1 if column else 2)), 2 if column else 1)


def cast_once(weight: Tensor) -> Tensor:
    """A weight in the dtype of autocast, which would cast a part of it again for every tile."""
    casts = torch.is_autocast_enabled('cpu') and weight.dtype != torch.float64
    return weight.to(torch.get_autocast_dtype('cpu')) if casts else weight


class TiledStem(InferenceForm, Stem):
    """:class:`Stem` on tiles of rows."""

    @classmethod
    def fits(cls, layer: Stem) -> bool:
        """Whether the convolutions have the windows that tiles are cut for."""
        expected = ((3, 3), (2, 2), (1, 1), (1, 1))
        return all(
            (conv.weight.shape[2:], conv.stride, conv.padding, conv.dilation) == expected
            for conv in (layer.conv1, layer.conv2)
        )

    def forward(self, x: Tensor) -> Tensor:
        self.check_inference()
        height, width = (-(-side // 4) for side in x.shape[1:3])
        if not is_large(height, width):
            return super().forward(x)
        out, rows = None, tile_lines(width)
        for top in range(0, height, rows):
            # A row of the map sees 4 rows of the image and the 3 above them. So a tile begins one row higher,
            # and the row that it computes from its own edge is dropped.
            above = min(top, 1)
            tile = super().forward(x[:, 4 * (top - above) : 4 * (top + rows)])[:, above:]
            if out is None:
                out = tile.new_empty(tile.size(0), height, *tile.shape[2:])
            out[:, top : top + rows] = tile
        return out


class TiledBlock(InferenceForm, Block):
    """:class:`Block`, whose MLP goes from tile to tile."""

    def forward(self, x: Tensor) -> Tensor:
        self.check_inference()
        if not is_large(*x.shape[1:3]):
            return super().forward(x)
        x = x + self.mixer(self.norm1(x))
        for tile in tiles_of(x):
            # In place is safe: nothing else holds this sum.
            tile += self.mlp(self.norm2(tile))
        return x


class TiledMinGRU2D(MixerForm, MinGRU2D):
    """:class:`MinGRU2D`, path by path and tile by tile."""

    def forward(self, x: Tensor) -> Tensor:
        self.check_inference()
        if not is_large(*x.shape[1:3]):
            return super().forward(x)
        x, number = self.dwconv(x), len(self.paths)
        weights_in = cast_once(self.in_proj.weight).chunk(number, 0)
        weights_out = [w.contiguous() for w in cast_once(self.out_proj.weight).chunk(number, 1)]
        # The sum over paths is rounded once, as inside the product that the whole output projection is.
        dtype = weights_out[0].dtype
        out = torch.empty_like(x, dtype=dtype if number < 3 else accumulation_dtype(dtype))
        for p, (name, w_in, w_out) in enumerate(zip(self.paths, weights_in, weights_out, strict=True)):
            path, state = PATHS[name], None
            tiles = list(zip(tiles_of(x, path.column), tiles_of(out, path.column), strict=True))
            for tile, y in reversed(tiles) if path.reverse else tiles:
                projected, options = linear(tile, w_in), dict(candidate=self.candidate, backend=self.backend)
                h = mingru_scan_2d(projected, paths=(name,), state=state, **options)
                state = h[:, 0, :1] if path.reverse else h[:, -1, -1:]
                part = linear(h, w_out)
                y.add_(part) if p else y.copy_(part)
        return out.to(dtype)
