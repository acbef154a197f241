"""Vision-RWKV for dense prediction as released: a ViT-Adapter (arXiv:2205.08534) around its layers.

Tokens are (B, N, C). Names of parameters are those of the released checkpoints.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath, build_norm_layer
from torch import Tensor, nn

from mmvisiongru.models.layers.deformable import DeformableAttention, cell_centres
from mmvisiongru.ops.backends import accumulation_dtype, check_choice
from mmvisiongru.registry import MODELS

from .backbone import check_positive, recomputed
from .vrwkv import VRWKV, pad_to_multiple

# Times that the layers and the prior exchange what they found, and strides of the returned maps.
INTERACTIONS = 4
STRIDES = (4, 8, 16, 32)


class SpatialPrior(nn.Module):
    """Maps at strides 4 to 32 straight from the image, each projected to C channels."""

    def __init__(self, in_channels: int, width: int, dim: int, norm_cfg: dict):
        super().__init__()

        def conv(inside: int, outside: int, stride: int) -> list[nn.Module]:
            conv = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
            return [conv, build_norm_layer(norm_cfg, outside)[1], nn.ReLU(inplace=True)]

        convs = conv(in_channels, width, 2) + conv(width, width, 1) + conv(width, width, 1)
        self.stem = nn.Sequential(*convs, nn.MaxPool2d(3, stride=2, padding=1))
        self.conv2 = nn.Sequential(*conv(width, 2 * width, 2))
        self.conv3 = nn.Sequential(*conv(2 * width, 4 * width, 2))
        self.conv4 = nn.Sequential(*conv(4 * width, 4 * width, 2))
        self.fc1, self.fc2, self.fc3, self.fc4 = (nn.Conv2d(n * width, dim, 1) for n in (1, 2, 4, 4))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) -> maps (B, dim, H / 4, W / 4) to (B, dim, H / 32, W / 32)."""
        c1 = self.stem(x)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        return [self.fc1(c1), self.fc2(c2), self.fc3(c3), self.fc4(self.conv4(c3))]


class Injector(nn.Module):
    """x = x + gamma A(LN x; LN c): the layers' tokens read the prior's maps; nothing at the start."""

    def __init__(self, dim: int, **attention):
        super().__init__()
        self.query_norm, self.feat_norm = (nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.attn = DeformableAttention(dim, levels=len(STRIDES) - 1, **attention)
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, places: Tensor, c: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Tokens x (B, N, C) and c, as :class:`DeformableAttention` takes them, -> (B, N, C)."""
        return x + self.gamma * self.attn(self.query_norm(x), places, self.feat_norm(c), shapes)


class ConvFFN(nn.Module):
    """W2 GELU(dwconv(W1 c)), with a depthwise 3x3 convolution, the same on each of several maps."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dwconv = nn.ModuleDict(dict(dwconv=nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)))

    def forward(self, c: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Tokens of the maps one after the other, (B, N, C) -> (B, N, C)."""
        maps = [self.dwconv['dwconv'](m) for m in split_maps(self.fc1(c), shapes)]
        return self.fc2(F.gelu(torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)))


class Extractor(nn.Module):
    """c = c + A(LN c; LN x);  c = c + FFN(LN c): the prior's maps read the layers' tokens."""

    def __init__(self, dim: int, hidden: int, drop_path: float, **attention):
        super().__init__()
        self.query_norm, self.feat_norm, self.ffn_norm = (nn.LayerNorm(dim, eps=1e-6) for _ in range(3))
        self.attn = DeformableAttention(dim, levels=1, **attention)
        self.ffn = ConvFFN(dim, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, c: Tensor, places: Tensor, x: Tensor, shape, shapes) -> Tensor:
        """Tokens c of maps of ``shapes`` and x of a map of ``shape`` -> (B, N, C), as c."""
        c = c + self.attn(self.query_norm(c), places, self.feat_norm(x), [shape])
        return c + self.drop_path(self.ffn(self.ffn_norm(c), shapes))


def split_maps(c: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Tokens of maps one after the other, (B, N, C), -> the maps, (B, C, H, W)."""
    parts = c.transpose(1, 2).split([H * W for H, W in shapes], 2)
    return [part.unflatten(2, shape).contiguous() for part, shape in zip(parts, shapes, strict=True)]


@MODELS.register_module()
class VRWKVAdapter(VRWKV):
    """Vision-RWKV with a ViT-Adapter: four maps of one width at strides 4, 8, 16 and 32.

    Four times the tokens read three maps that convolutions make of the image (Injector), go through a quarter
    of the layers, and are read by those maps (Extractor), with deformable attention both times.

    Args:
        arch (str | dict): 'tiny', 'small', 'base', 'large' or 'pico', or a dict as of :class:`VRWKV`, of a
            depth that four divides, with ``num_heads`` (int) and ``value_ratio`` (float) of the deformable
            attention; 'tiny' has factors of the branches here, which its classifier lacks.
        prior_channels (int): Width of the convolutions at stride 4.
        points (int): Places that a query of the deformable attention reads in a map.
        norm_cfg (dict): Norm of convolutions and returned maps; the released model has SyncBN, for GPUs only.
        drop_path_rate (float): Of the last layer, rising linearly from 0, and of every Extractor.
        tokens (str): Which tokens are added to the four maps: after 'each' interaction one, as released for
            segmentation, or the 'last' to all, as released for detection.
        in_channels, img_size, frozen_stages, with_cp, distance, wkv_backend: As of :class:`VRWKV`; patches
            are of 16 pixels.
        init_cfg (dict | list[dict], optional): As in mmengine; without it the initial values are those of the
            released model. ``dict(type='Pretrained', ...)`` takes a classifier or a segmentor of the released
            names and logs every parameter that it does not hold.
    """

    arch_settings = {
        'tiny': dict(VRWKV.arch_settings['tiny'], layer_scale=1.0, num_heads=6, value_ratio=1.0),
        'small': dict(VRWKV.arch_settings['small'], num_heads=6, value_ratio=1.0),
        'base': dict(VRWKV.arch_settings['base'], num_heads=12, value_ratio=0.5),
        'large': dict(VRWKV.arch_settings['large'], num_heads=16, value_ratio=0.5),
        # VRWKV's has 11 layers, which are not four equal parts.
        'pico': dict(embed_dims=96, depth=12, layer_scale=1.0, num_heads=6, value_ratio=1.0),
    }
    arch_options = dict(VRWKV.arch_options, num_heads=6, value_ratio=1.0)

    def __init__(
        self,
        arch: str | dict = 'tiny',
        in_channels: int = 3,
        img_size: int | Sequence[int] = 224,
        prior_channels: int = 64,
        points: int = 4,
        norm_cfg: dict = dict(type='BN', requires_grad=True),  # noqa: B006
        drop_path_rate: float = 0.0,
        tokens: str = 'each',
        frozen_stages: int = -1,
        with_cp: bool = False,
        distance: str = 'paper',
        wkv_backend: str = 'auto',
        init_cfg: dict | list[dict] | None = None,
    ):
        options = dict(drop_path_rate=drop_path_rate, frozen_stages=frozen_stages, with_cp=with_cp)
        options.update(distance=distance, wkv_backend=wkv_backend, init_cfg=init_cfg)
        super().__init__(arch, in_channels, img_size, **options)
        if self.depth % INTERACTIONS:
            raise ValueError(f'depth must be a multiple of {INTERACTIONS}, got {self.depth}')
        check_positive(prior_channels=prior_channels, points=points)
        check_choice('tokens', tokens, ('each', 'last'))
        self.tokens = tokens
        # The returned maps are sums with norms of their own.
        del self.ln1
        dim, self.with_cp = self.embed_dims, with_cp
        attention = {name: self.arch[name] for name in ('num_heads', 'value_ratio')} | dict(points=points)
        self.level_embed = nn.Parameter(torch.randn(len(STRIDES) - 1, dim))
        self.spm = SpatialPrior(in_channels, prior_channels, dim, norm_cfg)
        self.interactions = nn.ModuleList()
        for i in range(INTERACTIONS):
            # Two more after the last layers, whose tokens nothing else reads.
            number = 3 if i == INTERACTIONS - 1 else 1
            first, *others = (Extractor(dim, dim // 4, drop_path_rate, **attention) for _ in range(number))
            parts = dict(injector=Injector(dim, **attention), extractor=first)
            self.interactions.append(nn.ModuleDict(parts | dict(extra_extractors=nn.ModuleList(others))))
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (build_norm_layer(norm_cfg, dim)[1] for _ in STRIDES)
        self.feature_info = [
            dict(num_chs=dim, reduction=stride, module=f'norm{i}') for i, stride in enumerate(STRIDES, 1)
        ]
        for part in (self.layers, self.spm, self.interactions, self.up):
            part.apply(_initialise)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the four maps.

        Args:
            x (Tensor): Images, (B, in_channels, H, W), of any size from 1 x 1 on; they are padded with zeros
                below and on the right to multiples of 32.

        Returns:
            tuple[Tensor]: (B, embed_dims, ceil(H / s), ceil(W / s)) for s = 4, 8, 16, 32.
        """
        x, size = self._cast_to_stem_dtype(x), x.shape[2:]
        x = pad_to_multiple(x, (STRIDES[-1], STRIDES[-1]))
        c1, *prior = self.spm(x)
        shapes = [tuple(m.shape[2:]) for m in prior]
        embedded = zip(prior, self.level_embed, strict=True)
        c = torch.cat([m.flatten(2).transpose(1, 2) + embed for m, embed in embedded], 1)
        x, c = self._interact(self.embed(x), c, shapes)
        c2, c3, c4 = split_maps(c, shapes)
        x = x if self.tokens == 'each' else x[-1:] * len(x)
        # All tokens are at stride 16.
        sums = self.up(c2) + c1 + _resize(x[0], 4), c2 + _resize(x[1], 2), c3 + x[2], c4 + _resize(x[3], 0.5)
        norms = (self.norm1, self.norm2, self.norm3, self.norm4)
        return tuple(
            norm(out)[:, :, : -(-size[0] // stride), : -(-size[1] // stride)]
            for norm, out, stride in zip(norms, sums, STRIDES, strict=True)
        )

    def _interact(self, x: Tensor, c: Tensor, shapes) -> tuple[list[Tensor], Tensor]:
        """Tokens after each interaction as maps (B, C, H, W), from x (B, H, W, C); and c after the last."""
        shape, maps = tuple(x.shape[1:3]), []
        dtype = accumulation_dtype(x.dtype)
        of_x, of_c = (cell_centres(s, dtype, x.device) for s in ([shape], shapes))
        share, run = self.depth // INTERACTIONS, partial(recomputed, recompute=self.with_cp)
        for i, interaction in enumerate(self.interactions):
            x = run(interaction['injector'], x.flatten(1, 2), of_x, c, shapes).unflatten(1, shape)
            for layer in self.layers[share * i : share * (i + 1)]:
                x = layer(x)
            for extractor in (interaction['extractor'], *interaction['extra_extractors']):
                c = run(extractor, c, of_c, x.flatten(1, 2), shape, shapes)
            maps.append(x.permute(0, 3, 1, 2))
        return maps, c


def _resize(x: Tensor, scale: float) -> Tensor:
    return F.interpolate(x, scale_factor=scale, mode='bilinear', align_corners=False)


def _initialise(module: nn.Module) -> None:
    """As the released model; deformable attention has values of its own, which come after its parts'."""
    if isinstance(module, DeformableAttention):
        module.reset_parameters()
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1] // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)) and module.bias is not None:
        nn.init.zeros_(module.bias)
