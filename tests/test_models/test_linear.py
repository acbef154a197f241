"""Linear layers in inference: oneDNN's product, where the layer is as we built it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from mmvisiongru.models import VisionGRU
from mmvisiongru.models.layers.linear import _dtypes, linear, product


@pytest.fixture
def calls(monkeypatch):
    """How often oneDNN's product runs."""
    operator, seen = torch.ops.mkldnn._linear_pointwise, []
    monkeypatch.setattr(
        torch.ops.mkldnn,
        '_linear_pointwise',
        lambda *a: seen.append(a[0].shape) or operator(*a),
        raising=False,
    )
    return seen


def layer(bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(24, 40, bias=bias, dtype=dtype).eval()


@pytest.mark.parametrize('shape', [(1, 24), (7, 24), (2, 5, 3, 24), (1, 61, 67, 24), (0, 24)])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('gelu', [True, False])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_product_against_float64(shape, bias, gelu, dtype, tolerance):
    fc = layer(bias, dtype)
    x = 3 * torch.randn(shape).to(dtype)
    wanted = F.linear(x.double(), fc.weight.double(), fc.bias.double() if bias else None)
    wanted = F.gelu(wanted) if gelu else wanted
    with torch.no_grad():
        found = linear(fc, x, gelu)
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    if x.numel():
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


def test_strided_inputs_go_the_plain_way(calls):
    """oneDNN's product takes 30 times as long for them."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 9, 5, 24), torch.randn(40, 48)
    with torch.inference_mode():
        for part in (*weight.chunk(2, 1), weight[:, ::2], weight.view(80, 24)[::2]):
            torch.testing.assert_close(product(x, part), F.linear(x, part))
        product(x.transpose(1, 2), weight[:, :24].contiguous())
        assert not calls
        product(x, weight.chunk(2, 0)[1].view(40, 24))
    assert len(calls) == 1


def test_taken_in_inference_alone(calls):
    fc, x = layer(), torch.randn(3, 24)
    with torch.no_grad():
        linear(fc, x)
        assert len(calls) == 1
        linear(fc.train(), x)
        linear(fc.eval().double(), x.double())
        with torch.autocast('cpu', torch.bfloat16):
            assert linear(fc.float(), x).dtype == torch.bfloat16
        torch.func.vmap(lambda row: linear(fc, row))(x)
        torch.compile(lambda x: linear(fc, x), backend='eager')(x)
        with torch.backends.mkldnn.flags(enabled=False):
            linear(fc, x)
        with FlopCounterMode(display=False) as counter:
            linear(fc, x)
    assert counter.get_total_flops() == 2 * 3 * 24 * 40
    linear(fc, x, gelu=True).sum().backward()
    assert fc.weight.grad is not None
    assert len(calls) == 1


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def patched(fc):
    forward = fc.forward
    fc.forward = lambda x: 2 * forward(x)
    return fc


def doubled_by_class(fc):
    other = Doubled(24, 40).eval()
    other.load_state_dict(fc.state_dict())
    return other


def hooked(fc):
    fc.register_forward_hook(lambda module, args, out: 2 * out)
    return fc


def test_backward_hooks_fire_in_eval_mode():
    """As Grad-CAM and attribution use them."""
    torch.manual_seed(0)
    model, seen = VisionGRU(dict(embed_dims=[8], depths=[1]), out_indices=(0,)).eval(), []
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for fc in linears:
        fc.register_full_backward_hook(lambda module, *grads: seen.append(module))
    model(torch.randn(1, 3, 32, 32))[0].sum().backward()
    assert {*map(id, seen)} == {*map(id, linears)}


def test_hooks_of_all_modules_see_each_layer():
    model, seen = VisionGRU(dict(embed_dims=[8], depths=[1]), out_indices=(0,)).eval(), []
    handle = register_module_forward_hook(lambda module, args, out: seen.append(module))
    try:
        for context in (torch.no_grad(), torch.enable_grad()):
            seen.clear()
            with context:
                model(torch.randn(1, 3, 32, 32))
            assert {id(m) for m in model.modules() if isinstance(m, nn.Linear)} <= {*map(id, seen)}
    finally:
        handle.remove()


def test_tangents_pass_without_gradients_too():
    """no_grad turns off the backward pass, not forward-mode differentiation."""
    torch.manual_seed(0)
    model = VisionGRU(dict(embed_dims=[8], depths=[1]), out_indices=(0,)).eval()
    x, tangent = torch.randn(2, 1, 3, 32, 32)
    found = []
    for context in (torch.enable_grad(), torch.no_grad()):
        with context, forward_ad.dual_level():
            out = model(forward_ad.make_dual(x, tangent))[0]
            found.append(forward_ad.unpack_dual(out).tangent.detach().clone())
    torch.testing.assert_close(*found)


def test_bfloat16_where_onednn_has_none_of_it(calls, monkeypatch):
    """oneDNN's product raises there, torch's does not."""
    monkeypatch.setattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: False, raising=False)
    _dtypes.cache_clear()
    with torch.no_grad():
        linear(layer(dtype=torch.bfloat16), torch.randn(3, 24).bfloat16())
        assert not calls
        linear(layer(), torch.randn(3, 24))
    _dtypes.cache_clear()
    assert len(calls) == 1


@pytest.mark.parametrize(
    'change', [doubled_by_class, patched, hooked, lambda fc: nn.Sequential(fc, Double())]
)
def test_a_changed_layer_is_called_as_it_is(change, calls):
    x, plain = torch.randn(3, 24), layer()
    with torch.no_grad():
        found, wanted = linear(change(layer()), x), 2 * F.linear(x, plain.weight, plain.bias)
    torch.testing.assert_close(found, wanted)
    assert not calls


class Double(nn.Module):
    def forward(self, x):
        return 2 * x
