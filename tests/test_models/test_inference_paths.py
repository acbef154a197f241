"""Ways a model is run besides plain training: recomputed, in strips, exported, counted."""

import pytest
import torch
import torch.utils.checkpoint

from mmvisiongru.models import VisionGRU
from mmvisiongru.models.layers import strips
from mmvisiongru.models.visiongru import Stem
from mmvisiongru.ops.scan_paths import PATHS

ARCH = dict(embed_dims=[8, 16], depths=[1, 1])


@pytest.fixture(autouse=True)
def small_strips(monkeypatch):
    """Maps of a test's size are large then."""
    monkeypatch.setattr(strips, 'STRIP_TOKENS', 32)


def run(model, x, recompute):
    torch.manual_seed(3)
    if recompute:
        stage = model.stages[0].forward
        model.stages[0].forward = lambda y: torch.utils.checkpoint.checkpoint(stage, y, use_reentrant=True)
    out = sum(o.square().sum() for o in model(x))
    model.zero_grad()
    out.backward()
    return out, model.stem.conv1.weight.grad.clone()


def test_stochastic_depth_survives_a_forward_pass_without_gradients():
    """Reentrant checkpointing runs the forward pass without gradients, in training mode."""
    torch.manual_seed(0)
    # Rates 0, 0.3 and 0.6: the first block would show nothing.
    model = VisionGRU(dict(ARCH, depths=[2, 1]), out_indices=(0, 1), drop_path_rate=0.6).train()
    x = torch.randn(4, 3, 64, 72)
    plain, recomputed = run(model, x, False), run(model, x, True)
    for a, b in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('size', [(40, 64), (41, 64), (61, 67), (257, 33), (63, 512)])
def test_stem_in_strips_is_the_stem(size):
    torch.manual_seed(0)
    stem, x = Stem(3, 8), torch.randn(2, *size, 3)
    with torch.no_grad():
        torch.testing.assert_close(stem.eval()(x), stem.train()(x))


def test_strips_give_way_to_hooks_on_the_projections():
    torch.manual_seed(0)
    model = VisionGRU(ARCH, out_indices=(0, 1)).eval()
    x = torch.randn(1, 3, 64, 72)
    seen = []
    model.stages[0].blocks[0].mixer.out_proj.register_forward_hook(
        lambda m, i, o: seen.append(o.shape) or 0 * o
    )
    with torch.no_grad():
        hooked = model(x)[0]
    assert seen == [(1, 16, 18, 8)]
    model.stages[0].blocks[0].mixer.out_proj.weight.data.zero_()
    torch.testing.assert_close(hooked, model(x)[0].detach(), rtol=1e-5, atol=1e-5)


def test_quantised_projections_run_at_every_size():
    model = VisionGRU(ARCH, out_indices=(0, 1)).eval()
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    x = torch.randn(1, 3, 64, 72)
    with torch.no_grad():
        for got, exact in zip(quantised(x), model(x), strict=True):
            assert 0 < (got - exact).norm() / exact.norm() < 0.1


def test_hooks_in_stem_and_mlp_see_whole_maps():
    torch.manual_seed(0)
    model = VisionGRU(ARCH, out_indices=(0, 1)).eval()
    seen = []
    for module in (model.stem.norm2, model.stages[0].blocks[0].mlp.fc1):
        module.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape)))
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 72))
    assert seen == [(1, 16, 18, 8), (1, 16, 18, 32)]


def test_strips_keep_float32_between_paths_under_autocast():
    torch.manual_seed(0)
    paths = tuple(PATHS)
    mixer = (
        VisionGRU(ARCH, out_indices=(0, 1), scan_paths=paths, dwconv_kernel_size=None)
        .eval()
        .stages[0]
        .blocks[0]
        .mixer
    )
    x = torch.randn(1, 32, 36, 8)
    with torch.no_grad():
        exact = mixer.double()(x.double())
        mixer.float()
        with torch.autocast('cpu', torch.bfloat16):
            strips, whole = mixer(x), mixer.train()(x)
    assert strips.dtype == whole.dtype == torch.bfloat16
    errors = [float((y.double() - exact).norm() / exact.norm()) for y in (strips, whole)]
    assert errors[0] < 1.1 * errors[1], errors


@pytest.mark.parametrize('strict', [True, False])
def test_export(strict):
    model = VisionGRU(ARCH, out_indices=(0, 1)).eval()
    x = torch.randn(1, 3, 33, 40)
    exported = torch.export.export(model, (x,), strict=strict).module()
    for a, b in zip(exported(x), model(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
