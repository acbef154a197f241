"""The two mixers of Vision-RWKV (arXiv:2403.02308, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvisiongru.ops.backends import Backends, accumulation_dtype
from mmvisiongru.ops.wkv import BACKENDS, bi_wkv


def q_shift(x: Tensor) -> Tensor:
    """Move each quarter of the channels of a map (B, H, W, C) by one pixel; what comes in is zero.

    The first quarter of a token comes from its left neighbour, the second from its right one, the third from
    above, the fourth from below.
    """
    borders, quarters = [x.size(3) * q // 4 for q in range(5)], []
    # Where a quarter is padded, and the axis and index from which it is taken then. Some releases of
    # onnxruntime crop an axis of one pixel wrongly by a negative padding.
    sides = ((0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 0, 0, 1, 0), (0, 0, 0, 0, 0, 1))
    places = (2, 0), (2, 1), (1, 0), (1, 1)
    for first, last, side, (axis, start) in zip(borders[:-1], borders[1:], sides, places, strict=True):
        # Not every torch pads a quarter without channels.
        if first < last:
            padded = F.pad(x[..., first:last], side)
            quarters.append(padded.narrow(axis, start, x.size(axis)))
    return torch.cat(quarters, 3)


class SpatialMix(nn.Module):
    r"""Spatial mix: Bi-WKV of keys and values, gated.

    k, v, r = Wk M_k(x), Wv M_v(x), sigmoid(Wr M_r(x));   y = Wo (r * BiWKV(decay / T, first / T, k, v)),
    M_m(x) = m x + (1 - m) QShift(x), with T tokens.

    Args:
        dim (int): Channels C.
        layer (int): Number of the block, from 0, of ``depth``: they set the initial values.
        key_norm (bool): LayerNorm on what Bi-WKV gives.
        distance (str): As in :func:`mmvisiongru.ops.bi_wkv`.
        backend (str): Of Bi-WKV.
    """

    def __init__(self, dim: int, layer: int, depth: int, key_norm: bool, distance: str, backend: str):
        super().__init__()
        self.distance, self.backend = distance, backend
        channel, rise, fall = _positions(dim, layer, depth)
        self.spatial_decay = nn.Parameter(-5 + 8 * (channel / max(dim - 1, 1)) ** (0.7 + 1.3 * rise))
        self.spatial_first = nn.Parameter(torch.log(torch.tensor(0.3)) + ((channel + 1) % 3 - 1) * 0.5)
        self.spatial_mix_k = nn.Parameter(_mix(channel, fall))
        self.spatial_mix_v = nn.Parameter(_mix(channel, fall) + 0.3 * rise)
        self.spatial_mix_r = nn.Parameter(_mix(channel, 0.5 * fall))
        linears = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.key, self.value, self.receptance, self.output = linears
        self.key_norm = nn.LayerNorm(dim) if key_norm else nn.Identity()

    @property
    def backends(self) -> Backends:
        """Of Bi-WKV. Not an attribute: with the modules that were imported no model could be copied."""
        return BACKENDS[self.distance]

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        shifted, tokens = q_shift(x), x.size(1) * x.size(2)
        k = self.key(torch.lerp(shifted, x, self.spatial_mix_k))
        v = self.value(torch.lerp(shifted, x, self.spatial_mix_v))
        r = self.receptance(torch.lerp(shifted, x, self.spatial_mix_r))
        dtype = accumulation_dtype(self.spatial_decay.dtype)
        w, u = (parameter.to(dtype) / tokens for parameter in (self.spatial_decay, self.spatial_first))
        y = bi_wkv(w, u, k.flatten(1, 2), v.flatten(1, 2), distance=self.distance, backend=self.backend)
        return self.output(torch.sigmoid(r) * self.key_norm(y.view(x.shape)))


class ChannelMix(nn.Module):
    r"""Channel mix: sigmoid(Wr M_r(x)) * Wv relu(Wk M_k(x))^2, with M of :class:`SpatialMix`.

    Args:
        dim (int): Channels C.
        hidden_ratio (int): Hidden width over C.
        layer, depth (int), key_norm (bool): As in :class:`SpatialMix`; the norm is on the hidden width.
    """

    def __init__(self, dim: int, hidden_ratio: int, layer: int, depth: int, key_norm: bool):
        super().__init__()
        channel, _, fall = _positions(dim, layer, depth)
        self.spatial_mix_k = nn.Parameter(_mix(channel, fall))
        self.spatial_mix_r = nn.Parameter(_mix(channel, fall))
        self.key = nn.Linear(dim, hidden_ratio * dim, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(hidden_ratio * dim, dim, bias=False)
        self.key_norm = nn.LayerNorm(hidden_ratio * dim) if key_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        shifted = q_shift(x)
        hidden = self.activate(self.key(torch.lerp(shifted, x, self.spatial_mix_k)))
        gate = torch.sigmoid(self.receptance(torch.lerp(shifted, x, self.spatial_mix_r)))
        return gate * self.value(self.key_norm(hidden))

    def activate(self, x: Tensor) -> Tensor:
        """relu(x)^2."""
        return torch.relu(x).square()


def _positions(dim: int, layer: int, depth: int) -> tuple[Tensor, float, float]:
    """Channels 0 to C - 1, and how far a layer is: 0 to 1 at the last, and 1 to 1 / depth."""
    return torch.arange(dim, dtype=torch.float32), layer / max(depth - 1, 1), 1 - layer / depth


def _mix(channel: Tensor, exponent: float) -> Tensor:
    """Initial share of a token in its mix with its neighbours, (1, 1, C)."""
    return (channel / len(channel)).pow(exponent).view(1, 1, -1)
