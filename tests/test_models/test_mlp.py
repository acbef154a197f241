"""The MLP saves the input of its GELU and not the output; its gradients are those of plain layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from mmvisiongru.models.layers import MLP

ARCH = dict(embed_dims=[8, 16], depths=[1, 1])
# Of max|ref|.
LIMITS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-7}


class Plain(nn.Module):
    """The same layers, differentiated by autograd alone."""

    def __init__(self, mlp):
        super().__init__()
        self.fc1, self.fc2 = mlp.fc1, mlp.fc2

    def forward(self, x):
        return F.linear(F.gelu(self.fc1(x)), self.fc2.weight, self.fc2.bias)


def mlp_and_input(dtype=torch.float64, shape=(2, 5, 7, 6)):
    torch.manual_seed(0)
    return MLP(6, 4).to(dtype), torch.randn(shape, dtype=dtype, requires_grad=True)


def gradients(module, x):
    """Output and all gradients for a random cotangent."""
    out = module(x)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
    return out, *torch.autograd.grad(out, wanted, cotangent)


def assert_same(got, ref, limit=None):
    for a, b in zip(got, ref, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if b.numel():
            assert (a - b).abs().max() <= (limit or LIMITS[a.dtype]) * b.abs().max()


def saved_bytes(module, x):
    """Memory of what a forward pass saves for backward."""
    sizes = {}
    keep = lambda t: sizes.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        module(x)
    return sum(sizes.values())


@pytest.mark.parametrize('amp', [False, True])
def test_saves_the_wide_map_once(amp):
    mlp, x = mlp_and_input(torch.float32)
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        assert saved_bytes(Plain(mlp), x) - saved_bytes(mlp, x) == 4 * x.numel() * (2 if amp else 4)


@pytest.mark.parametrize(
    ('dtype', 'shape'),
    [*((dtype, (2, 5, 7, 6)) for dtype in LIMITS), (torch.float64, (6,)), (torch.float64, (0, 6))],
    ids=str,
)
def test_gradients(dtype, shape):
    mlp, x = mlp_and_input(dtype, shape)
    assert_same(gradients(mlp, x), gradients(Plain(mlp), x))
    with torch.no_grad():
        assert_same([mlp.eval()(x)], [Plain(mlp)(x)])
    if dtype != torch.bfloat16:
        with torch.autocast('cpu', torch.bfloat16):
            assert_same(gradients(mlp, x), gradients(Plain(mlp), x), 2**-7 if dtype.itemsize == 4 else None)


def test_gradcheck():
    mlp, x = mlp_and_input()
    x = x[:1, :2, :2].detach().requires_grad_()
    assert torch.autograd.gradcheck(mlp, x)
    assert torch.autograd.gradgradcheck(mlp, x)


@pytest.mark.parametrize(
    'frozen', [('fc1',), ('fc2',), ('fc1', 'fc2'), ('fc2.weight',), ('fc2.bias',)], ids=str
)
@pytest.mark.parametrize('input_needs_grad', [True, False])
def test_gradients_of_the_rest_with_frozen_weights(frozen, input_needs_grad):
    mlp, x = mlp_and_input()
    for name, param in mlp.named_parameters():
        param.requires_grad_(not name.startswith(frozen))
    x.requires_grad_(input_needs_grad)
    outs = [module(x) for module in (mlp, Plain(mlp))]
    wanted = [t for t in (x, *mlp.parameters()) if t.requires_grad]
    assert outs[0].requires_grad is bool(wanted)
    if wanted:
        assert_same(*(torch.autograd.grad(out.square().sum(), wanted) for out in outs))


def test_an_auxiliary_loss_on_the_activations():
    """Its backward pass frees what it went through; the loss of the output does not need that again."""
    mlp, x = mlp_and_input()
    seen = []
    mlp.fc2.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    out = mlp(x)
    torch.autograd.grad(seen[0].square().sum(), mlp.fc1.weight)
    (got,) = torch.autograd.grad(out.square().sum(), mlp.fc2.weight)
    (ref,) = torch.autograd.grad(Plain(mlp)(x).square().sum(), mlp.fc2.weight)
    assert_same([got], [ref])


class Doubled(TorchFunctionMode):
    """As simulated quantisation does, computes the product with other weights."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        args = (args[0], 2 * args[1], *args[2:]) if func is F.linear else args
        return func(*args, **(kwargs or {}))


def test_gradients_under_a_function_mode():
    mlp, x = mlp_and_input()
    with Doubled():
        assert_same(gradients(mlp, x), gradients(Plain(mlp), x))


def test_compile_export_and_trace():
    torch._dynamo.reset()
    mlp, x = mlp_and_input()
    compiled = torch.compile(mlp, fullgraph=True, backend='aot_eager')
    assert_same(gradients(compiled, x), gradients(Plain(mlp), x))
    for strict in (True, False):
        exported = torch.export.export(mlp.eval(), (x.detach(),), strict=strict).module()
        torch.testing.assert_close(exported(x.detach()), mlp(x.detach()))
    traced = torch.jit.trace(mlp.train(), (x,), check_trace=False)
    assert_same(gradients(traced, x), gradients(Plain(mlp), x))
