"""Base class of the backbones: arguments, outputs, frozen parts and pretrained weights."""

from collections.abc import Callable, Sequence
from numbers import Integral

import torch
import torch.fx
import torch.nn.functional as F
from mmcv.cnn.bricks import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmvisiongru.checkpoint import pretrained


# torch.fx would trace into it, where a size has no value.
@torch.fx.wrap
def interpolate_pos_embed(pos_embed: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a positional embedding (1, H, W, C) to a map's size, height and width."""
    if tuple(size) == tuple(pos_embed.shape[1:3]):
        return pos_embed
    pos_embed = pos_embed.permute(0, 3, 1, 2)
    resized = F.interpolate(pos_embed, size=tuple(size), mode='bicubic', align_corners=False)
    return resized.permute(0, 2, 3, 1)


def check_positive(**values: int | Sequence[int]) -> None:
    """Raise ValueError unless each argument, or each of its elements, is a positive integer."""
    for name, value in values.items():
        numbers = value if isinstance(value, Sequence) else [value]
        if not all(isinstance(number, Integral) and number > 0 for number in numbers):
            raise ValueError(f'{name} must be positive and whole, got {value!r}')


def recomputed(function: Callable, *args, recompute: bool) -> Tensor:
    """Call a function; with ``recompute`` its backward pass computes again what it would have saved."""
    # Whether the arguments need gradients says nothing: behind a frozen stem the weights do.
    if recompute and torch.is_grad_enabled():
        return checkpoint(function, *args, use_reentrant=False)
    return function(*args)


def add_pos_embed(x: Tensor, pos_embed: Tensor) -> Tensor:
    """Add a positional embedding (1, H', W', C), resized to the map, to a map (B, H, W, C)."""
    return x + interpolate_pos_embed(pos_embed, x.shape[1:3])


class Backbone(BaseModule):
    """A stem and a list of parts, each of whose maps can be returned.

    The list, of length ``parts``, is called ``what``: 'stages' or 'layers'. Other arguments are those of the
    backbones.
    """

    arch_settings: dict[str, dict]
    # Parameters, and modules with a dot behind their name, before the first block; number of blocks in all.
    stem_names: tuple[str, ...]
    num_blocks: int
    # In timm's form: channels, stride and module of each map returned.
    feature_info: list[dict]

    def __init__(
        self, what: str, parts: int, out_indices, frozen_stages: int, drop_path_rate: float, init_cfg
    ):
        super().__init__(init_cfg=init_cfg)
        indices = (out_indices,) if isinstance(out_indices, int) else out_indices
        if not indices or not all(isinstance(i, Integral) and -parts <= i < parts for i in indices):
            raise ValueError(f'out_indices must be {what} in [{-parts}, {parts}), got {out_indices!r}')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must be in [0, 1), got {drop_path_rate}')
        if not (isinstance(frozen_stages, Integral) and -1 <= frozen_stages <= parts):
            raise ValueError(f'frozen_stages must be in [-1, {parts}], got {frozen_stages}')
        self.what, self.frozen_stages, self.drop_path_rate = what, frozen_stages, drop_path_rate
        self.out_indices = tuple(sorted({i % parts for i in indices}))

    @classmethod
    def _settings_of(cls, arch: str | dict) -> dict:
        """The settings that an arch names, in any case, or the arch itself if it is a dict."""
        if not isinstance(arch, str):
            return arch
        if arch.lower() not in cls.arch_settings:
            raise ValueError(f'arch must be one of {tuple(cls.arch_settings)} or a dict, got {arch!r}')
        return cls.arch_settings[arch.lower()]

    def _drop_path_rates(self) -> list[float]:
        """Rates of the blocks, rising linearly from 0."""
        return torch.linspace(0, self.drop_path_rate, self.num_blocks, device='cpu').tolist()

    def _build_outputs(
        self, widths: Sequence[int], reductions: Sequence, norm_cfg: dict | None, contiguous: bool
    ) -> None:
        """Set how maps are returned by :meth:`_output`, given the width and the stride of each part's map."""
        self.feature_info = [
            dict(num_chs=widths[i], reduction=reductions[i], module=f'{self.what}.{i}')
            for i in self.out_indices
        ]
        self.out_norms = nn.ModuleDict(
            {str(i): build_norm_layer(norm_cfg, widths[i])[1] for i in self.out_indices if norm_cfg}
        )
        # Not isinstance: mmpretrain's LN2d is a LayerNorm that takes (B, C, H, W), like most norms.
        self.norms_tokens = all(type(norm) in (nn.LayerNorm, nn.RMSNorm) for norm in self.out_norms.values())
        self.out_contiguous = contiguous

    @property
    def num_features(self) -> int:
        """Channels of the last map returned, as timm calls them."""
        return self.feature_info[-1]['num_chs']

    def _output(self, x: Tensor, part: int) -> Tensor:
        """The map (B, H, W, C) of a part as it is returned, (B, C, H, W)."""
        if self.out_norms and self.norms_tokens:
            x = self.out_norms[str(part)](x)
        x = x.permute(0, 3, 1, 2)
        if self.out_norms and not self.norms_tokens:
            x = self.out_norms[str(part)](x)
        return x.contiguous() if self.out_contiguous else x

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says, after checking that a pretrained checkpoint fits."""
        with pretrained(self):
            super().init_weights()

    def train(self, mode: bool = True) -> 'Backbone':
        """Set the mode; frozen parts stay in evaluation mode. Returns self."""
        super().train(mode)
        self._freeze_stages()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        stem = (getattr(self, name.rstrip('.')) for name in self.stem_names)
        parts = getattr(self, self.what)[: self.frozen_stages]
        norms = (norm for i, norm in self.out_norms.items() if int(i) < self.frozen_stages)
        for frozen in (*stem, *parts, *norms):
            if isinstance(frozen, nn.Module):
                frozen.eval()
            if frozen is not None:
                frozen.requires_grad_(False)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning rate decay.

        The stem is layer 0, each block one layer, a downsampling belongs to the block after it, and what
        follows the last block, such as output norms and heads, is the last layer. Parameters of the backbone
        have the ``prefix`` in the model. Returns the depth of the layer, and the number of layers.
        """
        depth = self.num_blocks + 1
        name = param_name.removeprefix(prefix) if param_name.startswith(prefix) else ''
        if name.startswith(self.stem_names):
            depth = 0
        elif name.startswith(f'{self.what}.'):
            # Of a subclass: the number, from 0, of the block that a parameter of a part belongs to.
            depth = self._block_of(name) + 1
        return depth, self.num_blocks + 2

    def _cast_to_stem_dtype(self, x: Tensor) -> Tensor:
        """Cast images, which preprocessors give in float32, for a stem with weights of 16 bits."""
        stem = getattr(self, self.stem_names[0].rstrip('.'))
        parameters = list(stem.parameters())
        dtype = parameters[0].dtype if parameters else x.dtype
        return x.to(dtype) if dtype in (torch.bfloat16, torch.float16) else x
