"""What the backbones share, whatever mixes their tokens."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmvisiongru.checkpoint import pretrained


def interpolate_pos_embed(pos_embed: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a positional embedding (1, H, W, C) to the map it is added to."""
    if tuple(size) == tuple(pos_embed.shape[1:3]):
        return pos_embed
    resized = F.interpolate(
        pos_embed.permute(0, 3, 1, 2), size=tuple(size), mode='bicubic', align_corners=False
    )
    return resized.permute(0, 2, 3, 1)


class Backbone(BaseModule):
    """A stem and a number of parts, stages or layers, any of whose maps can be returned.

    Args:
        parts (int): How many parts there are.
        what (str): What they are called in messages.
        out_indices (int | Sequence[int]): Parts whose maps are returned; negative ones count from the end.
        frozen_stages (int): 0 freezes the stem, n the stem and the first n with their norms, -1 nothing.
        drop_path_rate (float): Stochastic depth rate of the last block.
        init_cfg (dict | list[dict], optional): As in mmengine.
    """

    arch_settings: dict[str, dict]

    def __init__(
        self,
        parts: int,
        what: str,
        out_indices: int | Sequence[int],
        frozen_stages: int,
        drop_path_rate: float,
        init_cfg: dict | list[dict] | None,
    ):
        super().__init__(init_cfg=init_cfg)
        indices = (out_indices,) if isinstance(out_indices, int) else out_indices
        if not indices or not all(-parts <= i < parts for i in indices):
            raise ValueError(f'out_indices must be {what} in [{-parts}, {parts}), got {out_indices!r}')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must be in [0, 1), got {drop_path_rate}')
        if not -1 <= frozen_stages <= parts:
            raise ValueError(f'frozen_stages must be in [-1, {parts}], got {frozen_stages}')
        self.out_indices = tuple(sorted({i % parts for i in indices}))
        self.frozen_stages = frozen_stages
        self.drop_path_rate = drop_path_rate

    @classmethod
    def _settings_of(cls, arch: str | dict) -> dict:
        """What an arch stands for; names may be in any case."""
        if not isinstance(arch, str):
            return arch
        if arch.lower() not in cls.arch_settings:
            raise ValueError(f'arch must be one of {tuple(cls.arch_settings)} or a dict, got {arch!r}')
        return cls.arch_settings[arch.lower()]

    def _drop_path_rates(self, blocks: int) -> list[float]:
        """Rates of the blocks, rising linearly from 0."""
        return torch.linspace(0, self.drop_path_rate, blocks, device='cpu').tolist()

    def _build_outputs(self, widths: Sequence[int], norm_cfg: dict | None, contiguous: bool) -> None:
        """Say how the maps of parts of these widths are returned, see :meth:`_output`."""
        self.out_norms = nn.ModuleDict(
            {str(i): build_norm_layer(norm_cfg, widths[i])[1] for i in self.out_indices if norm_cfg}
        )
        # Not isinstance: mmpretrain's LN2d is a LayerNorm that takes (B, C, H, W), like most norms.
        self.norms_tokens = all(type(norm) in (nn.LayerNorm, nn.RMSNorm) for norm in self.out_norms.values())
        self.out_contiguous = contiguous

    def _output(self, x: Tensor, part: int) -> Tensor:
        """The map (B, H, W, C) of a part as it is returned, (B, C, H, W)."""
        norm = self.out_norms[str(part)] if self.out_norms else nn.Identity()
        out = norm(x).permute(0, 3, 1, 2) if self.norms_tokens else norm(x.permute(0, 3, 1, 2))
        return out.contiguous() if self.out_contiguous else out

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
        norms = (norm for i, norm in self.out_norms.items() if int(i) < self.frozen_stages)
        for part in (*list(self._stem_and_parts())[: 1 + self.frozen_stages], norms):
            for module in part:
                if isinstance(module, nn.Parameter):
                    module.requires_grad = False
                elif module is not None:
                    module.eval().requires_grad_(False)

    def _as_the_stem(self, x: Tensor) -> Tensor:
        """Images for a stem of 16-bit weights, or what stands in its place; preprocessors give float32."""
        stem = next(iter(self._stem_and_parts()))[0]
        dtype = next((p.dtype for p in stem.parameters()), x.dtype)
        return x.to(dtype) if dtype in (torch.bfloat16, torch.float16) else x

    def _stem_and_parts(self) -> Iterable[Sequence[nn.Module | nn.Parameter | None]]:
        """What is frozen together: the stem, then each part."""
        raise NotImplementedError
