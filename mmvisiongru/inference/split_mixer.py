r"""Mixers of VisionGRU in the form in which they are exported: each path by itself, its projections split.

In a graph, splitting the projected map of all paths and joining theirs would be operators that copy the
widest maps of a mixer. The recurrence is left to :mod:`mmvisiongru.deployment.translations.mingru`.
"""

import torch
from torch import Tensor, nn

from mmvisiongru.models.layers import MinGRU2D
from mmvisiongru.ops.scan_paths import PATHS

from .form import MixerForm

torch.library.define(
    'mmvisiongru::scan_lines', '(Tensor gate, Tensor hidden, str candidate, bool reverse) -> Tensor'
)


# No kernel: an exporter follows shapes.
@torch.library.register_fake('mmvisiongru::scan_lines')
def _(gate, hidden, candidate, reverse):
    return torch.empty_like(gate)


class SplitMixer(MixerForm, MinGRU2D):
    """A :class:`MinGRU2D`, each path by itself: (B, H, W, C) -> (B, H, W, C)."""

    @classmethod
    def convert(cls, layer: MinGRU2D) -> None:
        """Give the layer this form, in place; its projections are replaced by their parts."""
        super().convert(layer)
        number = len(layer.paths)
        weights_in = layer.in_proj.weight.chunk(2 * number, 0)
        layer.hidden, layer.gate = _transposed(weights_in[::2]), _transposed(weights_in[1::2])
        layer.out = _transposed(layer.out_proj.weight.chunk(number, 1))
        del layer.in_proj, layer.out_proj

    def forward(self, x: Tensor) -> Tensor:
        x = self.dwconv(x)
        columns = sorted({PATHS[name].column for name in self.paths})
        return sum(self._read(x, column) for column in columns)

    def _read(self, x: Tensor, column: bool) -> Tensor:
        """The sum of the paths along the rows, or down the columns."""
        # To steps first, (H, B, W, C) or (W, B, H, C), of a flattened map: a plain transposition would become
        # one with that of the convolution, for which ONNX Runtime takes 10 times as long.
        if column:
            tokens = x.flatten(2).transpose(0, 1).unflatten(2, x.shape[2:])
        else:
            tokens = x.flatten(0, 1).transpose(0, 1).unflatten(1, x.shape[:2])
        total, paths = 0, [PATHS[name] for name in self.paths]
        for path, hidden, gate, out in zip(paths, self.hidden, self.gate, self.out, strict=True):
            if path.column == column:
                projected = tokens @ gate, tokens @ hidden
                h = torch.ops.mmvisiongru.scan_lines(*projected, self.candidate, path.reverse)
                total = total + h @ out
        return total.permute((1, 0, 2, 3) if column else (1, 2, 0, 3))


def _transposed(weights) -> nn.ParameterList:
    return nn.ParameterList(w.detach().T.contiguous() for w in weights)
