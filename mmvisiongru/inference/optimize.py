"""Conversion of a model for inference: each layer that is as it was built takes the form of its target."""

from collections import Counter
from itertools import pairwise

from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.wrappers import Linear as MMCVLinear
from mmengine.model import Sequential as MMEngineSequential
from torch import nn

from mmvisiongru.models.layers import MLP, ChannelMix, MinGRU2D
from mmvisiongru.models.visiongru import Block, Stem

from .form import InferenceForm, is_as_built
from .fused import FoldedConvModule, FusedLinear, FusedLinearGELU, FusedMLP, InPlaceChannelMix
from .split_mixer import SplitMixer
from .tiled import TiledBlock, TiledMinGRU2D, TiledStem

# By target: layers that have another form, by their exact type.
FORMS: dict[str, dict[type, type[InferenceForm]]] = {
    'cpu': {
        Stem: TiledStem,
        Block: TiledBlock,
        MinGRU2D: TiledMinGRU2D,
        MLP: FusedMLP,
        ChannelMix: InPlaceChannelMix,
        nn.Linear: FusedLinear,
        MMCVLinear: FusedLinear,
        ConvModule: FoldedConvModule,
    },
    'onnx': {MinGRU2D: SplitMixer},
}
# Modules of other packages, no nn.Sequential, and their linear layer and the GELU that follows it.
PAIRS = {'mmpretrain.models.backbones.convnext.ConvNeXtBlock': ('pointwise_conv1', 'act')}


def optimize_for_inference(model: nn.Module, target: str = 'cpu') -> nn.Module:
    """Convert the layers of a model to those forms in which inference is fast, in place and once.

    On a CPU large maps go through VisionGRU tile by tile, and linear layers of any model through oneDNN, with
    the GELU that follows them. Values stay the same but for rounding. A layer whose type is unknown, or that
    was hooked, patched, replaced, quantised or offloaded, stays as it is; a hook that is registered later and
    a ``TorchFunctionMode`` may not see the layers inside a converted one. A converted layer raises
    RuntimeError if it is called in training mode, with gradients enabled, traced or compiled: keep a copy of
    the model for those.

    Args:
        model (nn.Module): A backbone, classifier, segmentor or any other model.
        target (str): 'cpu', or 'onnx' for the form that :mod:`mmvisiongru.deployment` exports.

    Returns:
        nn.Module: The model, in evaluation mode. For 'cpu' the keys of its state dict are the same, and
        ``load_state_dict`` works on it.

    Raises:
        ValueError: The target is unknown.

    Examples:
        >>> import torch
        >>> from mmvisiongru import VisionGRU, optimize_for_inference
        >>> backbone = optimize_for_inference(VisionGRU('pico'))
        >>> with torch.no_grad():
        ...     print(len(backbone(torch.rand(1, 3, 64, 96))))
        4
    """
    if target not in FORMS:
        raise ValueError(f'target must be one of {tuple(FORMS)}, got {target!r}')
    forms = FORMS[target]
    model.eval()
    if target == 'cpu':
        _fuse_gelus(model)
    # Parents come first: they are as built only before their children are converted.
    for layer in list(model.modules()):
        form = forms.get(type(layer))
        if form and is_as_built(layer) and form.fits(layer):
            form.convert(layer)
    return model


def _fuse_gelus(model: nn.Module) -> None:
    """Let each linear layer compute the GELU right behind it."""
    uses = Counter(map(id, (m for _, m in model.named_modules(remove_duplicate=False))))
    for parent in list(model.modules()):
        for first, second in _pairs(parent):
            linear, gelu = getattr(parent, first), getattr(parent, second)
            is_pair = type(linear) in (nn.Linear, MMCVLinear) and type(gelu) is nn.GELU
            # A layer that is used elsewhere too may have no GELU behind it there.
            if not is_pair or gelu.approximate != 'none' or uses[id(linear)] > 1:
                continue
            if is_as_built(linear) and is_as_built(gelu):
                FusedLinearGELU.convert(linear)
                setattr(parent, second, nn.Identity())


def _pairs(parent: nn.Module) -> list[tuple[str, str]]:
    """Names of the children of a module that follow each other."""
    if type(parent) in (nn.Sequential, MMEngineSequential):
        names = [name for name, _ in parent.named_children()]
        return list(pairwise(names))
    kind = f'{type(parent).__module__}.{type(parent).__qualname__}'
    return [PAIRS[kind]] if kind in PAIRS else []
