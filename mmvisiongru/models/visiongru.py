"""VisionGRU backbone (arXiv:2412.18178).

Maps are channels-last, (B, H, W, C), from the stem to the output.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from mmvisiongru.models.layers import MLP, ChannelsLastConv2d, MinGRU2D
from mmvisiongru.ops.backends import check_choice
from mmvisiongru.ops.mingru import BACKENDS, CANDIDATES
from mmvisiongru.ops.scan_paths import check_paths
from mmvisiongru.registry import MODELS

from .backbone import Backbone, add_pos_embed, check_positive, recomputed

# Side of the grid on which the positional embedding is stored: the stage-1 map of a 224 x 224 image.
POS_EMBED_GRID = 56


class Stem(nn.Module):
    """Overlapping patch embedding at stride 4: two 3x3 stride-2 convolutions, each with LayerNorm."""

    def __init__(self, in_channels: int, dim: int):
        super().__init__()
        self.conv1 = ChannelsLastConv2d(in_channels, dim // 2, 3, stride=2, padding=1)
        self.norm1 = nn.LayerNorm(dim // 2, eps=1e-6)
        self.conv2 = ChannelsLastConv2d(dim // 2, dim, 3, stride=2, padding=1)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, in_channels) -> (B, ceil(H / 4), ceil(W / 4), dim)."""
        x = F.gelu(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(x))


class Downsample(nn.Module):
    """3x3 stride-2 convolution and LayerNorm between two stages; a side of n becomes ceil(n / 2)."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.conv = ChannelsLastConv2d(in_dim, dim, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Block(nn.Module):
    """x = x + mixer(LayerNorm(x));  x = x + MLP(LayerNorm(x))."""

    def __init__(self, dim: int, mlp_ratio: int, drop_path: float, with_cp: bool, **mixer):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = MinGRU2D(dim, **mixer)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_ratio)
        self.drop_path = DropPath(drop_path)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim)."""
        return recomputed(self._forward, x, recompute=self.with_cp)

    def _forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """An optional downsampling and a run of blocks on maps of one size."""

    def __init__(self, downsample: nn.Module | None, blocks: Sequence[nn.Module]):
        super().__init__()
        self.downsample = downsample or nn.Identity()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


@MODELS.register_module()
class VisionGRU(Backbone):
    """VisionGRU (arXiv:2412.18178): a hierarchical backbone that mixes tokens with a bidirectional minGRU.

    Defaults are those of the released model, whose checkpoints load unchanged. Where the text of the paper
    differs, an argument selects its reading.

    Args:
        arch (str | dict): 'tiny' or 'base' (the paper's VisionGRU-Ti and -B) or 'pico' (1.4 M parameters, for
            laptops and tests, not from the paper), in any case, or ``dict(embed_dims=[...], depths=[...])``.
        in_channels (int): Channels of the image.
        scan_paths (Sequence[str]): Reading orders of every mixer, out of 'row', 'row_reverse', 'column'
            and 'column_reverse' (Algorithm 1).
        dwconv_kernel_size (int, optional): Depthwise convolution before the scan, odd; None for none.
        expand_ratio (int): Width of the scan over the width of the stage.
        mlp_ratio (int): Hidden width of the MLP over the width of the stage.
        candidate (str): 'g' (released code) or 'linear' (eq. 8), see :func:`mmvisiongru.ops.mingru_scan`.
        pos_embed (str, optional): 'absolute' adds a learnt embedding after the stem, interpolated to the
            size of the map (the paper's text); None, as in the released code, adds none.
        drop_path_rate (float): Stochastic depth rate of the last block; it rises linearly from 0.
        out_indices (int | Sequence[int]): Stages whose maps are returned; negative ones count from the end.
        out_norm_cfg (dict, optional): A norm on each returned map, e.g. ``dict(type='LN')``. LayerNorm and
            RMSNorm take the channels of each token; any other norm gets the map as (B, C, H, W).
        out_contiguous (bool): Store the returned maps as (B, C, H, W), for heads that call ``view`` on them
            (mmseg's DMHead); False leaves them channels-last, which saves a copy.
        frozen_stages (int): 0 freezes the stem, n the stem and the first n stages with the norms of their
            maps, -1 nothing.
        with_cp (bool): Recompute each block in the backward pass to save memory.
        scan_backend (str): 'auto' or one of :func:`mmvisiongru.ops.runnable_backends`.
        init_cfg (dict | list[dict], optional): As in mmengine. ``dict(type='Pretrained', ...)`` raises
            when the checkpoint holds no parameter of this backbone, and lists those that do not fit.

    Examples:
        >>> import torch
        >>> from mmvisiongru.models import VisionGRU
        >>> backbone = VisionGRU('pico').eval()
        >>> for feature_map in backbone(torch.rand(1, 3, 64, 96)):
        ...     print(tuple(feature_map.shape))
        (1, 24, 16, 24)
        (1, 48, 8, 12)
        (1, 96, 4, 6)
        (1, 192, 2, 3)
    """

    stem_names = ('stem.', 'pos_embed')
    arch_settings = {
        'tiny': dict(embed_dims=[72, 144, 288, 576], depths=[2, 2, 8, 2]),
        'base': dict(embed_dims=[104, 208, 416, 832], depths=[2, 2, 15, 2]),
        'pico': dict(embed_dims=[24, 48, 96, 192], depths=[1, 1, 2, 1]),
    }

    def __init__(
        self,
        arch: str | dict[str, Sequence[int]] = 'tiny',
        in_channels: int = 3,
        scan_paths: Sequence[str] = ('row', 'row_reverse'),
        dwconv_kernel_size: int | None = 3,
        expand_ratio: int = 2,
        mlp_ratio: int = 4,
        candidate: str = 'g',
        pos_embed: str | None = None,
        drop_path_rate: float = 0.0,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        out_norm_cfg: dict | None = None,
        out_contiguous: bool = False,
        frozen_stages: int = -1,
        with_cp: bool = False,
        scan_backend: str = 'auto',
        init_cfg: dict | list[dict] | None = None,
    ):
        embed_dims, depths = self._parse_arch(arch)
        super().__init__('stages', len(depths), out_indices, frozen_stages, drop_path_rate, init_cfg)
        self.embed_dims, self.depths, self.num_blocks = embed_dims, depths, sum(depths)
        check_positive(in_channels=in_channels, expand_ratio=expand_ratio, mlp_ratio=mlp_ratio)
        check_paths(scan_paths, 'scan_paths')
        check_choice('candidate', candidate, CANDIDATES)
        check_choice('pos_embed', pos_embed, (None, 'absolute'))
        check_choice('scan_backend', scan_backend, ('auto', *BACKENDS))
        if dwconv_kernel_size and (dwconv_kernel_size < 0 or dwconv_kernel_size % 2 == 0):
            raise ValueError(f'dwconv_kernel_size must be odd or None, got {dwconv_kernel_size}')
        mixer = dict(paths=scan_paths, kernel_size=dwconv_kernel_size, expand_ratio=expand_ratio)
        mixer.update(candidate=candidate, backend=scan_backend)
        self.stem = Stem(in_channels, self.embed_dims[0])
        self.pos_embed = None
        if pos_embed:
            self.pos_embed = nn.Parameter(torch.empty(1, POS_EMBED_GRID, POS_EMBED_GRID, self.embed_dims[0]))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        rates = iter(self._drop_path_rates())
        self.stages = nn.ModuleList()
        for i, (dim, depth) in enumerate(zip(self.embed_dims, self.depths, strict=True)):
            downsample = Downsample(self.embed_dims[i - 1], dim) if i else None
            blocks = [Block(dim, mlp_ratio, next(rates), with_cp, **mixer) for _ in range(depth)]
            self.stages.append(Stage(downsample, blocks))
        reductions = [4 * 2**i for i in range(len(self.depths))]
        self._build_outputs(self.embed_dims, reductions, out_norm_cfg, out_contiguous)
        self._freeze_stages()

    def _parse_arch(self, arch) -> tuple[tuple[int, ...], tuple[int, ...]]:
        arch = self._settings_of(arch)
        if set(arch) != {'embed_dims', 'depths'}:
            raise ValueError(f"an arch dict has the keys 'embed_dims' and 'depths', got {sorted(arch)}")
        embed_dims, depths = tuple(arch['embed_dims']), tuple(arch['depths'])
        if len(embed_dims) != len(depths) or not depths:
            raise ValueError(f'arch has {len(embed_dims)} embed_dims for the stages, {len(depths)} depths')
        check_positive(embed_dims=embed_dims, depths=depths)
        if embed_dims[0] % 2:
            raise ValueError(f'embed_dims[0] must be even (the stem halves it), got {embed_dims[0]}')
        return embed_dims, depths

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of the stages in ``out_indices``.

        Args:
            x (Tensor): Images, (B, in_channels, H, W), of any size from 1 x 1 on. A model with 16-bit weights
                casts them.

        Returns:
            tuple[Tensor]: Stage i is (B, embed_dims[i], ceil(H / 4 / 2^i), ceil(W / 4 / 2^i)), stored
            channels-last unless ``out_contiguous``.
        """
        x = self.stem(self._cast_to_stem_dtype(x).permute(0, 2, 3, 1))
        if self.pos_embed is not None:
            x = add_pos_embed(x, self.pos_embed)
        outs = []
        for i, stage in enumerate(self.stages[: self.out_indices[-1] + 1]):
            x = stage(x)
            if i in self.out_indices:
                outs.append(self._output(x, i))
        return tuple(outs)

    def _block_of(self, param_name: str) -> int:
        _, stage, part, *rest = param_name.split('.')
        return sum(self.depths[: int(stage)]) + (int(rest[0]) if part == 'blocks' else 0)
