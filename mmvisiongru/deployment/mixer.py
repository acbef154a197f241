r"""Mixers of VisionGRU in the form in which they are exported: each path by itself, its projections split.

In torch all paths are one product and one operator, which splits the map where it reads it. In a graph the
splitting would be an operator of its own, and so would be the join: both copy the widest maps of a mixer. So
each path, its gate and its candidate have a product each here, and only the recurrence is left to a
translation (:mod:`.translations.mingru`).
"""

import torch
from torch import Tensor, nn

from mmvisiongru.models.layers import MinGRU2D
from mmvisiongru.models.layers.known import is_unchanged
from mmvisiongru.models.layers.linear import LINEAR
from mmvisiongru.ops.scan_paths import PATHS

torch.library.define(
    'mmvisiongru::scan_lines', '(Tensor gate, Tensor hidden, str candidate, bool reverse) -> Tensor'
)


# No kernel: an exporter follows shapes.
@torch.library.register_fake('mmvisiongru::scan_lines')
def _(gate, hidden, candidate, reverse):
    return torch.empty_like(gate)


class SplitMixer(nn.Module):
    """A :class:`MinGRU2D`, each path by itself: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, mixer: MinGRU2D):
        super().__init__()
        self.dwconv, self.candidate = mixer.dwconv, mixer.candidate
        self.paths = [PATHS[name] for name in mixer.paths]
        weights_in = mixer.in_proj.weight.chunk(2 * len(self.paths), 0)
        self.hidden, self.gate = _transposed(weights_in[::2]), _transposed(weights_in[1::2])
        self.out = _transposed(mixer.out_proj.weight.chunk(len(self.paths), 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.dwconv(x)
        return sum(self._read(x, column) for column in sorted({path.column for path in self.paths}))

    def _read(self, x: Tensor, column: bool) -> Tensor:
        """The sum of the paths along the rows, or down the columns."""
        tokens, total = steps_first(x, column), 0
        for path, hidden, gate, out in zip(self.paths, self.hidden, self.gate, self.out, strict=True):
            if path.column == column:
                projected = tokens @ gate, tokens @ hidden
                h = torch.ops.mmvisiongru.scan_lines(*projected, self.candidate, path.reverse)
                total = total + h @ out
        return total.permute((1, 0, 2, 3) if column else (1, 2, 0, 3))


def steps_first(x: Tensor, column: bool) -> Tensor:
    """A map (B, H, W, C) as (W, B, H, C), the steps along its rows, or (H, B, W, C) for columns.

    The transposition is of a flattened map. A plain one would follow that of the convolution, the two would
    become one, and ONNX Runtime takes 10 times as long for it, as it moves single numbers.
    """
    if column:
        return x.flatten(2).transpose(0, 1).unflatten(2, x.shape[2:])
    return x.flatten(0, 1).transpose(0, 1).unflatten(1, x.shape[:2])


def _transposed(weights) -> nn.ParameterList:
    return nn.ParameterList(w.detach().T.contiguous() for w in weights)


def split_mixers(module: nn.Module) -> None:
    """Put :class:`SplitMixer` where a mixer and its projections are as they were built."""
    for name, child in module.named_children():
        if type(child) is MinGRU2D and _as_built(child):
            setattr(module, name, SplitMixer(child))
        else:
            split_mixers(child)


def _as_built(mixer: MinGRU2D) -> bool:
    projections = (mixer.in_proj, mixer.out_proj)
    if not all(type(layer) is nn.Linear and layer.bias is None for layer in projections):
        return False
    weight = mixer.in_proj.weight
    as_built = [(mixer, MinGRU2D.forward), *((layer, LINEAR) for layer in projections)]
    return all(is_unchanged(layer, forward, weight) for layer, forward in as_built)
