"""A form of a layer, and whether a layer can take it."""

import torch
from mmcv.cnn.bricks import DropPath
from torch import nn

from mmvisiongru._compat import has_hooks
from mmvisiongru.models.layers import MLP, ChannelMix, ChannelsLastConv2d, GELULinear, MinGRU2D
from mmvisiongru.models.visiongru import Block, Stem


class InferenceForm:
    """Mixin of a layer's subclass with another ``forward``; a layer is converted by setting its class."""

    @classmethod
    def fits(cls, layer: nn.Module) -> bool:
        """Whether a layer that :func:`is_as_built` can take this form."""
        return True

    @classmethod
    def convert(cls, layer: nn.Module) -> None:
        """Give the layer this form, in place."""
        layer.__class__ = cls

    def check_inference(self) -> None:
        """Raise RuntimeError unless the layer is called for inference."""
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if traced or self.training or torch.is_grad_enabled():
            raise RuntimeError(
                f'{type(self).__name__} was made by optimize_for_inference: call it in evaluation mode under '
                'torch.no_grad(); train, trace or compile a model that was not converted'
            )


class MixerForm(InferenceForm):
    """Form of a :class:`MinGRU2D` whose projections have no bias, as built."""

    @classmethod
    def fits(cls, layer: MinGRU2D) -> bool:
        return layer.in_proj.bias is None and layer.out_proj.bias is None


LINEAR, NORM, CONV = (nn.Linear,), (nn.LayerNorm,), (ChannelsLastConv2d,)
# The children of a layer as it is built; those of other layers do not matter.
CHILDREN: dict[type, dict[str, tuple[type, ...]]] = {
    Stem: dict(conv1=CONV, norm1=NORM, conv2=CONV, norm2=NORM),
    Block: dict(norm1=NORM, mixer=(MinGRU2D,), norm2=NORM, mlp=(MLP,), drop_path=(DropPath,)),
    MinGRU2D: dict(dwconv=(*CONV, nn.Identity), in_proj=LINEAR, out_proj=LINEAR),
    MLP: dict(fc1=LINEAR, fc2=(GELULinear,)),
    ChannelMix: dict(key=LINEAR, receptance=LINEAR, value=LINEAR, key_norm=(*NORM, nn.Identity)),
}


def is_as_built(layer: nn.Module) -> bool:
    """Whether nobody replaced, hooked, patched, quantised or offloaded a layer or a part of it."""
    if has_hooks(layer) or {'forward', 'weight', 'bias'} & vars(layer).keys():
        return False
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) != 1:
        return False
    # Weights that are quantised are of a subclass, those that are offloaded lie elsewhere.
    for p in layer.parameters(recurse=False):
        if type(p) is not nn.Parameter or p.layout is not torch.strided or p.device.type != 'cpu':
            return False
    expected = CHILDREN.get(_type_as_built(layer))
    if expected is None:
        return True
    children = dict(layer.named_children())
    return children.keys() == expected.keys() and all(
        _type_as_built(child) in expected[name] and is_as_built(child) for name, child in children.items()
    )


def _type_as_built(layer: nn.Module) -> type:
    """The type of a layer, or the one that it had before it was converted."""
    return type(layer).__bases__[1] if isinstance(layer, InferenceForm) else type(layer)
