"""Vision-RWKV backbone (arXiv:2403.02308).

Maps are channels-last, (B, H, W, C), from the patches to the output. Names of parameters are those of the
released checkpoints.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from mmvisiongru.models.layers import ChannelMix, SpatialMix
from mmvisiongru.ops.backends import check_choice
from mmvisiongru.ops.wkv import BACKENDS, DISTANCES
from mmvisiongru.registry import MODELS

from .backbone import Backbone, add_pos_embed, check_positive, recomputed


def pad_to_multiple(x: Tensor, of: tuple[int, int]) -> Tensor:
    """Pad a map (B, C, H, W) with zeros below and on the right, to multiples of a height and a width."""
    # Not -side % n: torch.compile has no remainder of a negative size.
    below, right = ((n - side % n) % n for side, n in zip(x.shape[2:], of, strict=True))
    return F.pad(x, (0, right, 0, below))


class PatchEmbed(nn.Module):
    """Patches of an image, each projected to C channels; an image is padded to whole ones with zeros."""

    def __init__(self, in_channels: int, dim: int, patch_size: tuple[int, int]):
        super().__init__()
        self.projection = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, ceil(H / patch), ceil(W / patch), dim)."""
        # Padded even by nothing: a branch on the size would make a compiled graph hold for some sizes only.
        return self.projection(pad_to_multiple(x, self.projection.stride)).permute(0, 2, 3, 1)


class Layer(nn.Module):
    """x = x + g1 SM(LN1 x);  x = x + g2 CM(LN2 x); with post_norm, LN comes after the mixers."""

    def __init__(self, arch: dict, index: int, hidden_ratio: int, drop_path: float, with_cp: bool, **wkv):
        super().__init__()
        dim, depth, key_norm = arch['embed_dims'], arch['depth'], arch['key_norm']
        self.post_norm, layer_scale, self.with_cp = arch['post_norm'], arch['layer_scale'], with_cp
        # The residual stream starts from the normalised embedding.
        self.ln0 = nn.LayerNorm(dim) if index == 0 else nn.Identity()
        self.ln1, self.ln2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.att = SpatialMix(dim, index, depth, key_norm, **wkv)
        self.ffn = ChannelMix(dim, hidden_ratio, index, depth, key_norm)
        self.drop_path = DropPath(drop_path)
        for name in ('gamma1', 'gamma2'):
            scale = None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale)))
            self.register_parameter(name, scale)

    def _branch(self, x: Tensor, norm: nn.Module, mixer: nn.Module, gamma: Tensor | None) -> Tensor:
        y = self.drop_path(norm(mixer(x)) if self.post_norm else mixer(norm(x)))
        return x + y if gamma is None else torch.addcmul(x, gamma, y)

    def _forward(self, x: Tensor) -> Tensor:
        x = self._branch(self.ln0(x), self.ln1, self.att, self.gamma1)
        return self._branch(x, self.ln2, self.ffn, self.gamma2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return recomputed(self._forward, x, recompute=self.with_cp)


@MODELS.register_module()
class VRWKV(Backbone):
    """Vision-RWKV: a plain backbone of one width whose tokens are mixed by Bi-WKV, of linear cost.

    Args:
        arch (str | dict): 'tiny', 'small', 'base' or 'large' (the paper's VRWKV-T, -S, -B and -L), 'pico' (of
            VisionGRU-pico's size, not from the paper), or a dict with ``embed_dims`` (int), ``depth`` (int)
            and, where they differ from tiny's, ``post_norm`` (bool), ``key_norm`` (bool) and ``layer_scale``
            (initial value of the factors of the branches, None for no factors).
        in_channels (int): Channels of the image.
        img_size (int | Sequence[int]): Side, or height and width, of the images on whose grid of patches the
            positional embedding is stored; others have it interpolated. The released large model has 192.
        patch_size (int | Sequence[int]): Side, or height and width, of a patch.
        hidden_ratio (int): Hidden width of the channel mix over that of the backbone.
        drop_path_rate (float): Stochastic depth rate of the last layer; it rises linearly from 0.
        out_indices (int | Sequence[int]): Layers whose maps are returned; negative ones count from the end.
            The last layer's is normalised, the others' are not.
        out_norm_cfg, out_contiguous: As in :class:`VisionGRU`.
        frozen_stages (int): 0 freezes the embedding, n the embedding and the first n layers with the norms of
            their maps, -1 nothing.
        with_cp (bool): Recompute each layer in the backward pass to save memory.
        distance (str): 'paper', or 'released' to reproduce the released CUDA kernel, see
            :func:`mmvisiongru.ops.bi_wkv`.
        wkv_backend (str): 'auto' or one of :func:`mmvisiongru.ops.wkv.runnable_backends`.
        init_cfg (dict | list[dict], optional): As in mmengine. The default is that of the released model.
            ``dict(type='Pretrained', ...)`` raises when the checkpoint holds no parameter of this backbone,
            and lists those that do not fit.

    Examples:
        >>> import torch
        >>> from mmvisiongru.models import VRWKV
        >>> (feature_map,) = VRWKV('pico').eval()(torch.rand(1, 3, 64, 96))
        >>> feature_map.shape
        torch.Size([1, 96, 4, 6])
    """

    stem_names = ('patch_embed.', 'pos_embed')
    arch_settings = {
        'tiny': dict(embed_dims=192, depth=12),
        'small': dict(embed_dims=384, depth=12, post_norm=True, layer_scale=1.0),
        'base': dict(embed_dims=768, depth=12, post_norm=True, layer_scale=1e-5),
        'large': dict(embed_dims=1024, depth=24, post_norm=True, key_norm=True, layer_scale=1e-5),
        'pico': dict(embed_dims=96, depth=11),
    }
    # Optional keys of an arch, with their defaults.
    arch_options = dict(post_norm=False, key_norm=False, layer_scale=None)

    def __init__(
        self,
        arch: str | dict = 'tiny',
        in_channels: int = 3,
        img_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 16,
        hidden_ratio: int = 4,
        drop_path_rate: float = 0.0,
        out_indices: int | Sequence[int] = (-1,),
        out_norm_cfg: dict | None = None,
        out_contiguous: bool = False,
        frozen_stages: int = -1,
        with_cp: bool = False,
        distance: str = 'paper',
        wkv_backend: str = 'auto',
        init_cfg: dict | list[dict] | None = dict(type='TruncNormal', layer='Linear', std=0.02),  # noqa: B006
    ):
        arch = self._parse_arch(arch)
        depth, dim = arch['depth'], arch['embed_dims']
        super().__init__('layers', depth, out_indices, frozen_stages, drop_path_rate, init_cfg)
        self.arch, self.depth, self.embed_dims, self.num_blocks = arch, depth, dim, depth
        img_size, patch_size = tuple(to_2tuple(img_size)), tuple(to_2tuple(patch_size))
        check_positive(in_channels=in_channels, hidden_ratio=hidden_ratio)
        check_positive(img_size=img_size, patch_size=patch_size)
        if not len(img_size) == len(patch_size) == 2:
            raise ValueError(f'img_size and patch_size are (height, width), got {img_size} and {patch_size}')
        check_choice('distance', distance, DISTANCES)
        BACKENDS[distance].check(wkv_backend)

        self.patch_embed = PatchEmbed(in_channels, dim, patch_size)
        self.grid = tuple(-(-side // patch) for side, patch in zip(img_size, patch_size, strict=True))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], dim))
        self.layers, wkv = nn.ModuleList(), dict(distance=distance, backend=wkv_backend)
        for i, rate in enumerate(self._drop_path_rates()):
            self.layers.append(Layer(arch, i, hidden_ratio, rate, with_cp, **wkv))
        self.ln1 = nn.LayerNorm(dim)
        reduction = patch_size[0] if patch_size[0] == patch_size[1] else patch_size
        self._build_outputs([dim] * depth, [reduction] * depth, out_norm_cfg, out_contiguous)
        self._freeze_stages()

    def _parse_arch(self, arch: str | dict) -> dict:
        arch = self._settings_of(arch)
        needed = {'embed_dims', 'depth'}
        if not needed <= set(arch) <= needed | set(self.arch_options):
            options = tuple(self.arch_options)
            raise ValueError(f"an arch has 'embed_dims', 'depth' and maybe {options}, got {sorted(arch)}")
        arch = self.arch_options | dict(arch)
        for name, kinds in (('embed_dims', int), ('depth', int), ('layer_scale', (int, float, type(None)))):
            if not isinstance(arch[name], kinds) or isinstance(arch[name], bool):
                raise ValueError(f'{name} of an arch must be a number, got {arch[name]!r}')
        check_positive(embed_dims=arch['embed_dims'], depth=arch['depth'])
        return arch

    def _freeze_stages(self) -> None:
        super()._freeze_stages()
        # The norm of the last layer's map, which the adapter does not have.
        if self.frozen_stages == self.depth and hasattr(self, 'ln1'):
            self.ln1.eval().requires_grad_(False)

    def embed(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> tokens for the layers, (B, ceil(H / patch), ceil(W / patch), C)."""
        return add_pos_embed(self.patch_embed(x), self.pos_embed.unflatten(1, self.grid))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of the layers in ``out_indices``.

        Args:
            x (Tensor): Images, (B, in_channels, H, W), of any size from 1 x 1 on; in float32 also where the
                weights are of 16 bit.

        Returns:
            tuple[Tensor]: Each (B, embed_dims, ceil(H / patch_size), ceil(W / patch_size)), stored
            channels-last unless ``out_contiguous``.
        """
        x = self.embed(self._cast_to_stem_dtype(x))
        outs = []
        for i, layer in enumerate(self.layers[: self.out_indices[-1] + 1]):
            x = layer(x)
            if i in self.out_indices:
                outs.append(self._output(self.ln1(x) if i == self.depth - 1 else x, i))
        return tuple(outs)

    def _block_of(self, param_name: str) -> int:
        return int(param_name.split('.')[1])
