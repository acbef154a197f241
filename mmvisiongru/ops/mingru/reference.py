r"""Reference backend: the definition of minGRU, one token at a time.

h_t = (1 - z_t) h_{t-1} + z_t c_t,   z_t = sigmoid(gate_t),   c_t = g(hidden_t),   h_0 = 0
(arXiv:2410.01201, appendix B.3.1). Backward, with s_t = dL/dh_t summed over all later uses of h_t:

s_t = dh_t + (1 - z_{t+1}) s_{t+1},   dc_t = z_t s_t,   dgate_t = s_t (c_t - h_{t-1}) z_t (1 - z_t)

1 - z is computed as sigmoid(-gate): for an open gate the difference would lose all digits.
"""

import torch
from torch import Tensor

from ..backends import accumulation_dtype
from ..backends import runs_everywhere as unsupported
from ..scan_paths import as_sequence, steps, write_sequence
from .interface import PreActivations, ScanOptions

__all__ = ['backward', 'forward', 'unsupported']


def candidate_and_slope(hidden: Tensor, candidate: str) -> tuple[Tensor, Tensor]:
    """Return c and dc/dhidden. g(x) is x + 0.5 for x >= 0 and sigmoid(x) otherwise; 'linear' is x."""
    if candidate == 'linear':
        return hidden, torch.ones_like(hidden)
    sigmoid, positive = torch.sigmoid(hidden), hidden >= 0
    slope = torch.where(positive, 1.0, sigmoid * (1 - sigmoid))
    return torch.where(positive, hidden + 0.5, sigmoid), slope


def forward(x: PreActivations, out: Tensor, options: ScanOptions, state: Tensor | None = None) -> None:
    """Scan, see ``interface.py``."""
    acc = accumulation_dtype(out.dtype)
    for p, (column, reverse) in enumerate(options.paths):
        gate, hidden = (as_sequence(t, column).to(acc) for t in x.path(p))
        z, keep = torch.sigmoid(gate), torch.sigmoid(-gate)
        c, _ = candidate_and_slope(hidden, options.candidate)
        h = torch.empty_like(z)
        previous = z.new_zeros(z.size(0), z.size(2)) if state is None else state[:, p].to(acc)
        for t in steps(z.size(1), reverse):
            previous = h[:, t] = keep[:, t] * previous + z[:, t] * c[:, t]
        write_sequence(h, column, out[..., p, :])


def backward(grad: Tensor, x: PreActivations, h: Tensor, out: PreActivations, options: ScanOptions) -> None:
    """Write the gradients of :func:`forward`, see ``interface.py``."""
    acc = accumulation_dtype(h.dtype)
    for p, (column, reverse) in enumerate(options.paths):
        maps = (grad[..., p, :], h[..., p, :], *x.path(p))
        dh, hs, gate, hidden = (as_sequence(t, column).to(acc) for t in maps)
        z, keep = torch.sigmoid(gate), torch.sigmoid(-gate)
        c, slope = candidate_and_slope(hidden, options.candidate)
        length = z.size(1)
        d_gate, d_hidden = torch.empty_like(z), torch.empty_like(z)
        carry = z.new_zeros(z.size(0), z.size(2))
        for t in steps(length, not reverse):
            s = dh[:, t] + carry
            before = t + 1 if reverse else t - 1
            previous = hs[:, before] if 0 <= before < length else torch.zeros_like(s)
            d_gate[:, t] = s * (c[:, t] - previous) * z[:, t] * keep[:, t]
            d_hidden[:, t] = s * z[:, t] * slope[:, t]
            # For a nearly closed gate, keep = 1 - z rounds z away in each token; s - z s keeps it.
            carry = torch.where(z[:, t] < 0.5, s - z[:, t] * s, keep[:, t] * s)
        for value, target in zip((d_gate, d_hidden), out.path(p), strict=True):
            write_sequence(value, column, target)
