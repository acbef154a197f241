r"""Reference backend: the definition of minGRU, one token at a time.

h_t = (1 - z_t) h_{t-1} + z_t c_t,   z_t = sigmoid(gate_t),   c_t = g(hidden_t),   h_0 = 0
(arXiv:2410.01201, appendix B.3.1). Backward, with s_t = dL/dh_t summed over all later uses of h_t:

s_t = dh_t + (1 - z_{t+1}) s_{t+1},   dc_t = z_t s_t,   dgate_t = s_t (c_t - h_{t-1}) z_t (1 - z_t)
"""

import torch
from torch import Tensor

from ..paths import as_sequence, parse_paths, write_sequence


def unsupported(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Runs everywhere."""
    return []


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Scan state is float32, or float64 for float64 input."""
    return torch.promote_types(dtype, torch.float32)


def candidate_and_slope(hidden: Tensor, candidate: str) -> tuple[Tensor, Tensor]:
    """Return c and dc/dhidden: g(x) = x + 0.5 where x >= 0, sigmoid(x) elsewhere; 'linear' is x."""
    if candidate == 'linear':
        return hidden, torch.ones_like(hidden)
    sigmoid = torch.sigmoid(hidden)
    positive = hidden >= 0
    return (
        torch.where(positive, hidden + 0.5, sigmoid),
        torch.where(positive, 1.0, sigmoid * (1 - sigmoid)),
    )


def steps(length: int, reverse: bool):
    """Positions in reading order."""
    return reversed(range(length)) if reverse else range(length)


def forward(
    gate: Tensor, hidden: Tensor, out: Tensor, paths: str, candidate: str, state: Tensor | None = None
) -> None:
    """Scan each path p of gate, hidden (B, H, W, P, D) into ``out``, from ``state`` (B, P, D) or from 0."""
    acc = accumulation_dtype(gate.dtype)
    for p, (column, reverse) in enumerate(parse_paths(paths)):
        z = torch.sigmoid(as_sequence(gate[..., p, :], column).to(acc))
        c, _ = candidate_and_slope(as_sequence(hidden[..., p, :], column).to(acc), candidate)
        h = torch.empty_like(z)
        previous = z.new_zeros(z.size(0), z.size(2)) if state is None else state[:, p].to(acc)
        for t in steps(z.size(1), reverse):
            previous = h[:, t] = (1 - z[:, t]) * previous + z[:, t] * c[:, t]
        write_sequence(h, column, out[..., p, :])


def backward(
    grad: Tensor,
    gate: Tensor,
    hidden: Tensor,
    h: Tensor,
    grad_gate: Tensor,
    grad_hidden: Tensor,
    paths: str,
    candidate: str,
) -> None:
    """Write the gradients of :func:`forward` given dL/dh; every tensor is (B, H, W, P, D)."""
    acc = accumulation_dtype(gate.dtype)
    for p, (column, reverse) in enumerate(parse_paths(paths)):
        dh, hs = (as_sequence(x[..., p, :], column).to(acc) for x in (grad, h))
        z = torch.sigmoid(as_sequence(gate[..., p, :], column).to(acc))
        c, slope = candidate_and_slope(as_sequence(hidden[..., p, :], column).to(acc), candidate)
        length = z.size(1)
        d_gate, d_hidden = torch.empty_like(z), torch.empty_like(z)
        carry = z.new_zeros(z.size(0), z.size(2))
        for t in steps(length, not reverse):
            s = dh[:, t] + carry
            before = t + 1 if reverse else t - 1
            previous = hs[:, before] if 0 <= before < length else torch.zeros_like(s)
            d_gate[:, t] = s * (c[:, t] - previous) * z[:, t] * (1 - z[:, t])
            d_hidden[:, t] = s * z[:, t] * slope[:, t]
            carry = s * (1 - z[:, t])
        write_sequence(d_gate, column, grad_gate[..., p, :])
        write_sequence(d_hidden, column, grad_hidden[..., p, :])
