r"""Layers of VisionGRU in the form in which they are exported: by the lines of a map.

A runtime of ONNX computes a layer for the whole map before the next one, and the widest maps of a block, 4 C
and 8 C, go to memory and back between any two operators. A mixer and an MLP of these classes are one
operator each, which the translations make loops over lines of, projections inside: what is wide is then
never more than a line, and stays in the cache. Only the layers whose weights do so too take part.
"""

import torch
from torch import Tensor, nn

from mmvisiongru.models.layers import MLP, MinGRU2D
from mmvisiongru.models.layers.known import is_unchanged
from mmvisiongru.models.layers.linear import LINEAR
from mmvisiongru.ops.paths import PATHS

# Bytes of a body's weights, which each line reads again: what a core has for a cache of its own, and some of
# the one behind it. Measured: 2.7 MB gain at any size of the map, 5.3 MB lose on small ones.
BODY_WEIGHTS = 3e6

torch.library.define(
    'mmvisiongru::mixer_by_lines',
    '(Tensor x, Tensor hidden, Tensor keep, Tensor out, bool column, bool reverse) -> Tensor',
)
torch.library.define(
    'mmvisiongru::mlp_by_lines', '(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2) -> Tensor'
)


# No kernels: an exporter follows shapes.
@torch.library.register_fake('mmvisiongru::mixer_by_lines')
def _(x, hidden, keep, out, column, reverse):
    return torch.empty_like(x)


@torch.library.register_fake('mmvisiongru::mlp_by_lines')
def _(x, w1, b1, w2, b2):
    return torch.empty_like(x)


class MixerByLines(nn.Module):
    """A :class:`MinGRU2D`, each path by itself: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, mixer: MinGRU2D):
        super().__init__()
        self.dwconv, self.paths = mixer.dwconv, [PATHS[name] for name in mixer.paths]
        weights_in = mixer.in_proj.weight.chunk(2 * len(self.paths), 0)
        weights_out = mixer.out_proj.weight.chunk(len(self.paths), 1)
        self.hidden = _transposed(weights_in[::2])
        # sigmoid(-x) = 1 - sigmoid(x), of which the scan has use.
        self.keep = _transposed(-w for w in weights_in[1::2])
        self.out = _transposed(weights_out)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.dwconv(x), 0
        for path, *weights in zip(self.paths, self.hidden, self.keep, self.out, strict=True):
            total = total + torch.ops.mmvisiongru.mixer_by_lines(x, *weights, *path)
        return total


class MLPByLines(nn.Module):
    """An :class:`MLP`: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, mlp: MLP):
        super().__init__()
        self.w1, self.w2 = _transposed((mlp.fc1.weight, mlp.fc2.weight))
        self.b1, self.b2 = mlp.fc1.bias, mlp.fc2.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mmvisiongru.mlp_by_lines(x, self.w1, self.b1, self.w2, self.b2)


def _transposed(weights) -> nn.ParameterList:
    return nn.ParameterList(w.detach().T.contiguous() for w in weights)


def by_lines(module: nn.Module) -> None:
    """Put the classes above where a layer is as it was built, and its weights are few."""
    for name, child in module.named_children():
        if type(child) is MinGRU2D and child.candidate == 'g' and _fits(child, False, len(child.paths)):
            setattr(module, name, MixerByLines(child))
        elif type(child) is MLP and _fits(child, True):
            setattr(module, name, MLPByLines(child))
        else:
            by_lines(child)


def _fits(layer: nn.Module, bias: bool, bodies: int = 1) -> bool:
    """Whether a layer and its two linear ones are what they were, with few enough weights for the bodies."""
    linear = [child for child in layer.children() if isinstance(child, nn.Linear)]
    if len(linear) != 2 or any((child.bias is not None) != bias for child in linear):
        return False
    weight = linear[0].weight
    as_built = [(layer, type(layer).forward), *((child, LINEAR) for child in linear)]
    if not all(is_unchanged(child, forward, weight) for child, forward in as_built):
        return False
    return sum(child.weight.nbytes for child in linear) <= bodies * BODY_WEIGHTS
