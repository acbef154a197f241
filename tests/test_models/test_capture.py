"""Graphs of the backbones as PyTorch's tools take them: torch.fx, torch.compile, a compiled backward pass."""

import pytest
import torch
from torchvision.models.feature_extraction import create_feature_extractor

from mmvisiongru.models import VRWKV, VisionGRU, VRWKVAdapter
from mmvisiongru.models.visiongru import Block
from mmvisiongru.models.vrwkv import Layer, PatchEmbed
from tests.harness.backbones import image

ARCH = dict(embed_dims=[8, 12], depths=[1, 1])
BACKBONES = {
    'VisionGRU': lambda: VisionGRU(ARCH, out_indices=(0, 1)),
    'VRWKV': lambda: VRWKV(dict(embed_dims=12, depth=2), out_indices=(0, 1)),
    'VRWKVAdapter': lambda: VRWKVAdapter(
        dict(embed_dims=12, depth=4, num_heads=2), prior_channels=4, points=2
    ),
}


def build(name):
    torch.manual_seed(0)
    torch._dynamo.reset()
    return BACKBONES[name]().eval()


@pytest.mark.parametrize(
    ('name', 'nodes', 'leaves'),
    [('VisionGRU', ('stages.0', 'stages.1'), [Block]), ('VRWKV', ('layers.0', 'ln1'), [Layer, PatchEmbed])],
)
def test_feature_extraction_with_blocks_as_leaves(name, nodes, leaves):
    model = build(name)
    extractor = create_feature_extractor(model, list(nodes), tracer_kwargs=dict(leaf_modules=leaves))
    for size in ((64, 64), (65, 47)):
        x = image(*size)
        for got, ref in zip(extractor(x).values(), model(x), strict=True):
            assert torch.equal(got.permute(0, 3, 1, 2), ref)


@pytest.mark.parametrize('name', BACKBONES)
def test_compiled_for_several_sizes(name):
    model = build(name)
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    for size in ((64, 64), (96, 80), (33, 46)):
        found = []
        for module in (compiled, model):
            x = image(*size).requires_grad_()
            outs = module(x)
            sum(out.square().mean() for out in outs).backward()
            found.append([*outs, x.grad])
        for got, ref in zip(*found, strict=True):
            torch.testing.assert_close(got, ref, rtol=1e-4, atol=1e-5)


def test_compiled_backward():
    model = build('VisionGRU')

    def loss():
        return sum(out.square().mean() for out in model(image(33, 46)))

    ref = torch.autograd.grad(loss(), list(model.parameters()))
    out = loss()
    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(lambda: out.backward(), backend='aot_eager')()
    for param, grad in zip(model.parameters(), ref, strict=True):
        torch.testing.assert_close(param.grad, grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', BACKBONES)
def test_empty_batch(name):
    model, shapes = build(name), []
    for batch in (0, 1):
        maps = model(image(33, 46, batch=batch))
        sum(m.sum() for m in maps).backward()
        shapes.append([m.shape[1:] for m in maps])
    assert shapes[0] == shapes[1]
