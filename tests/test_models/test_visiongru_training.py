"""The backbone in training: gradients, frozen stages, drop path, recomputation, learning rate decay."""

import pytest
import torch
import torch.utils.checkpoint
from mmcv.cnn.bricks import DropPath

from mmvisiongru.models.visiongru import VisionGRU
from tests.harness.visiongru import SMALL, image, small


def grads_of(model, x, seed=0):
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    outs = model(x)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(y.shape, generator=generator) for y in outs]
    params = [p for p in model.parameters() if p.requires_grad]
    return outs, torch.autograd.grad(outs, (x, *params), cotangents)


@pytest.mark.parametrize('pos_embed', [None, 'absolute'])
@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 4])
def test_frozen_stages(frozen_stages, pos_embed):
    """0 freezes the stem, n the stem and the first n stages."""
    model = small(frozen_stages=frozen_stages, pos_embed=pos_embed, drop_path_rate=0.5)
    assert model.train() is model

    def frozen(name):
        if not name.startswith('stages.'):
            return frozen_stages >= 0
        return int(name.split('.')[1]) < frozen_stages

    for name, module in model.named_modules():
        if name.startswith(('stem', 'stages.')):
            assert module.training is not frozen(name), name
    outs = model(image(32, 32))
    if any(not frozen(name) for name, _ in model.named_parameters()):
        torch.autograd.backward(
            [y for y in outs if y.requires_grad], [torch.randn_like(y) for y in outs if y.requires_grad]
        )
    else:
        assert not any(y.requires_grad for y in outs)
    for name, param in model.named_parameters():
        assert param.requires_grad is not frozen(name), name
        assert (param.grad is None) is frozen(name), name
    assert not any(m.training for m in model.eval().modules())
    model.train()
    assert model.stem.training is (frozen_stages < 0)


@pytest.mark.parametrize('rate', [0.0, 0.1, 0.3])
@pytest.mark.parametrize('depths', [[1, 1, 2, 1], [2, 1, 3, 2]])
def test_drop_path_schedule(depths, rate):
    model = VisionGRU(arch=dict(embed_dims=[8, 12, 20, 28], depths=depths), drop_path_rate=rate)
    total = sum(depths)
    rates = []
    for stage, depth in zip(model.stages, depths, strict=True):
        assert len(stage.blocks) == depth
        for block in stage.blocks:
            (found,) = {m.drop_prob for m in block.modules() if isinstance(m, DropPath)} or {0.0}
            rates.append(found)
    assert rates == pytest.approx([rate * k / (total - 1) for k in range(total)])


def test_drop_path_drops_each_branch_of_each_sample():
    torch.manual_seed(0)
    # Rates 0 and 0.5: the second block keeps neither, either or both of its branches.
    model = VisionGRU(arch=dict(embed_dims=[8, 12], depths=[1, 1]), drop_path_rate=0.5, out_indices=(0, 1))
    x = image(16, 16, batch=1).expand(64, -1, -1, -1)
    first, second = (y.detach().flatten(1) for y in model.train()(x))
    assert torch.allclose(first, first[:1], atol=1e-6)
    distinct = torch.cdist(second, second).lt(1e-3).int().unique(dim=0)
    assert len(distinct) == 4
    a, b = (y.flatten(1) for y in model.eval()(x))
    assert torch.allclose(a, a[:1], atol=1e-6)
    assert torch.allclose(b, b[:1], atol=1e-6)


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2])
@pytest.mark.parametrize('drop_path_rate', [0.0, 0.5])
def test_with_cp(drop_path_rate, frozen_stages):
    options = dict(drop_path_rate=drop_path_rate, frozen_stages=frozen_stages)
    plain, recomputing = small(**options).train(), small(with_cp=True, **options).train()
    recomputing.load_state_dict(plain.state_dict())
    x = image(33, 46, batch=8)
    for got, ref in zip(grads_of(recomputing, x), grads_of(plain, x), strict=True):
        for a, b in zip(got, ref, strict=True):
            assert torch.equal(a, b)


def test_autocast_bf16():
    model, x = small().train(), image(33, 46)
    ref = model(x)
    with torch.autocast('cpu', torch.bfloat16):
        got = model(x)
        sum(y.float().square().mean() for y in got).backward()
    for a, b in zip(got, ref, strict=True):
        assert (a.float() - b).square().mean().sqrt() <= 0.05 * b.square().mean().sqrt()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('strict', [True, False])
def test_export(strict):
    model, x = small(arch=dict(embed_dims=[8, 12], depths=[1, 1]), out_indices=(0, 1)).eval(), image(33, 40)
    exported = torch.export.export(model, (x,), strict=strict).module()
    for a, b in zip(exported(x), model(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_stochastic_depth_survives_a_forward_pass_without_gradients():
    """Reentrant checkpointing runs the forward pass without gradients, in training mode."""
    arch = dict(embed_dims=[8, 12], depths=[2, 1])
    # Rates 0, 0.3 and 0.6: the first block would show nothing.
    model = small(arch=arch, out_indices=(0, 1), drop_path_rate=0.6).train()
    stage, results = model.stages[0].forward, []
    for forward in (stage, lambda y: torch.utils.checkpoint.checkpoint(stage, y, use_reentrant=True)):
        model.stages[0].forward = forward
        torch.manual_seed(3)
        model.zero_grad()
        outs = model(image(64, 72, batch=4))
        sum(out.square().mean() for out in outs).backward()
        results.append([*outs, *(p.grad.clone() for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_layer_depth_rises_through_the_network():
    model = VisionGRU(arch=SMALL, pos_embed='absolute', out_norm_cfg=dict(type='LN'))
    total = sum(SMALL['depths'])
    for prefix in ('', 'backbone.'):
        depths = {n: model.get_layer_depth(prefix + n, prefix) for n, _ in model.named_parameters()}
        assert {number for _, number in depths.values()} == {total + 2}
        order = [depths[n][0] for n in depths if n.startswith(('stem', 'stages'))]
        assert order == sorted(order)
        assert sorted(set(order)) == list(range(total + 1))
        assert depths['stem.conv1.weight'][0] == depths['pos_embed'][0] == 0
        assert depths['stages.2.downsample.conv.weight'] == depths['stages.2.blocks.0.norm1.weight']
        assert depths['stages.2.blocks.1.mlp.fc2.bias'][0] == 4
        assert {d for n, (d, _) in depths.items() if 'out_norm' in n} == {total + 1}
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (total + 1, total + 2)


def test_layer_decay_of_mmpretrain():
    from mmpretrain.engine import LearningRateDecayOptimWrapperConstructor
    from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS

    model = MMPRETRAIN_MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='mmvisiongru.VisionGRU', arch=SMALL, out_indices=(3,)),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=3, in_channels=28),
            _scope_='mmpretrain',
        )
    )
    constructor = LearningRateDecayOptimWrapperConstructor(
        dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05)), dict(layer_decay_rate=0.5)
    )
    groups = {g['param_name']: g['lr'] for g in constructor(model).optimizer.param_groups}
    assert groups.keys() == dict(model.named_parameters()).keys()
    block = 'backbone.stages.{}.blocks.{}.mixer.in_proj.weight'
    # Seven layers: the stem, five blocks and the head.
    blocks = [block.format(*place) for place in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))]
    names = ['backbone.stem.conv1.weight', *blocks, 'head.fc.weight']
    assert [groups[name] for name in names] == [0.5**k for k in range(6, -1, -1)]
    assert groups['backbone.stages.3.downsample.norm.bias'] == groups[block.format(3, 0)]
