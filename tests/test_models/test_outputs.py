"""What the backbone returns, as heads and configs of both libraries expect it."""

import copy

import pytest
import torch
from mmpretrain.models.utils import LayerNorm2d
from torch import nn

from mmvisiongru.models import VisionGRU

# The second map of a 64 x 64 image is 8 x 8 x 8: norms of a wrong axis run without an error.
ARCH = dict(embed_dims=[6, 8, 12], depths=[1, 1, 1])


def build(**options):
    torch.manual_seed(0)
    return VisionGRU(**{'arch': ARCH, 'out_indices': (0, 1, 2), **options})


def image():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 3])
@pytest.mark.parametrize('norm', ['LN', 'BN'])
def test_frozen_stages_freeze_the_norm_of_their_maps(norm, frozen_stages):
    model = build(out_norm_cfg=dict(type=norm), frozen_stages=frozen_stages).train()
    for i in range(3):
        frozen = i < frozen_stages
        layer = model.out_norms[str(i)]
        assert layer.training is not frozen
        assert all(p.requires_grad is not frozen for p in layer.parameters())
    state = copy.deepcopy(model.state_dict())
    outs = [out for out in model(image()) if out.requires_grad]
    assert len(outs) == 3 - max(frozen_stages, 0)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    free = range(max(frozen_stages, 0), 3)
    statistics = ('running_mean', 'running_var', 'num_batches_tracked') if norm == 'BN' else ()
    assert changed == {f'out_norms.{i}.{name}' for i in free for name in statistics}


def by_definition(norm, raw, axes):
    """Over ``axes`` of a map (B, C, H, W), with affine parameters by channel."""
    if isinstance(norm, nn.RMSNorm):
        return raw / (raw.square().mean(axes, keepdim=True) + 1e-5).sqrt() * norm.weight[:, None, None]
    out = (raw - raw.mean(axes, keepdim=True)) / (raw.var(axes, keepdim=True, correction=0) + norm.eps).sqrt()
    if norm.weight is None:
        return out
    return out * norm.weight[:, None, None] + norm.bias[:, None, None]


@pytest.mark.parametrize(
    ('cfg', 'axes'),
    [
        (dict(type='LN'), 1),
        (dict(type=nn.LayerNorm, eps=1e-3), 1),
        (dict(type=LayerNorm2d), 1),
        (dict(type=nn.RMSNorm), 1),
        (dict(type='BN'), (0, 2, 3)),
        (dict(type='BN', requires_grad=False), (0, 2, 3)),
        (dict(type='IN'), (2, 3)),
        (dict(type='IN', affine=True), (2, 3)),
        (dict(type='GN', num_groups=1), (1, 2, 3)),
    ],
    ids=str,
)
def test_norms_of_tokens_and_norms_of_maps(cfg, axes):
    model = build(out_norm_cfg=cfg).train()
    for param in model.out_norms.parameters():
        nn.init.normal_(param)
    plain = build()
    plain.load_state_dict(model.state_dict(), strict=False)
    for i, (got, raw) in enumerate(zip(model(image()), plain(image()), strict=True)):
        ref = by_definition(model.out_norms[str(i)], raw, axes)
        torch.testing.assert_close(got, ref, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('norm', [None, dict(type='LN'), dict(type='BN')], ids=str)
def test_contiguous_maps(norm):
    plain, contiguous = build(out_norm_cfg=norm), build(out_norm_cfg=norm, out_contiguous=True)
    for a, b in zip(plain(image()), contiguous(image()), strict=True):
        assert a.is_contiguous(memory_format=torch.channels_last)
        assert b.is_contiguous()
        assert torch.equal(a, b)
