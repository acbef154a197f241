"""The MLP recomputes its GELU and nothing else; whatever stands in for its layers keeps its gradients."""

import copy
import gc
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode

from mmvisiongru.models import VisionGRU
from mmvisiongru.models.layers import MLP

ARCH = dict(embed_dims=[8, 16], depths=[1, 1])


class Calls(TorchDispatchMode):
    """Count operators by name."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class LoRA(nn.Module):
    """A layer with an adapter of low rank, as peft injects it."""

    def __init__(self, base, dropout):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features)
        self.dropout = dropout

    def forward(self, x):
        return self.base(x) + self.up(self.down(self.dropout(x)))


class Hidden(nn.Module):
    """GELU and second layer, kept apart from what :class:`MLP` does about memory."""

    def __init__(self, mlp):
        super().__init__()
        self.fc1, self.fc2 = mlp.fc1, mlp.fc2

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


def mlp_and_input(dtype=torch.float64):
    torch.manual_seed(0)
    return MLP(6, 4).to(dtype), torch.randn(2, 5, 7, 6, dtype=dtype, requires_grad=True)


def gradients(module, x, seed=3):
    """Output and all gradients for a random cotangent, from one state of the random numbers."""
    torch.manual_seed(seed)
    out = module(x)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
    return out, *torch.autograd.grad(out, wanted, cotangent)


def assert_plain(mlp, x):
    """Gradients are those of the same layers run by autograd alone."""
    for got, ref in zip(gradients(mlp, x), gradients(Hidden(mlp), x), strict=True):
        assert torch.equal(got, ref)


def bytes_kept(module, x):
    """Memory that a forward pass leaves behind, its output included."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        out = module(x)
    kept = sum(event.self_cpu_memory_usage for event in profile.function_events)
    del out
    return kept


def test_keeps_the_input_of_gelu_and_not_its_output():
    mlp, x = mlp_and_input(torch.float32)
    hidden, out = 4 * x.numel() * 4, x.numel() * 4
    assert bytes_kept(Hidden(mlp), x) >= 2 * hidden + out
    assert hidden + out <= bytes_kept(mlp, x) < 1.2 * hidden + out
    with torch.autocast('cpu', torch.bfloat16):
        weights = 2 * mlp.fc1.weight.numel() * 2
        assert bytes_kept(mlp, x) < 1.2 * (hidden + out) / 2 + out + weights


def test_recomputes_gelu_and_no_product():
    mlp, x = mlp_and_input()
    with Calls() as calls:
        mlp(x).sum().backward()
    assert calls.count['gelu'] == 2
    assert calls.count['addmm'] == 2
    assert calls.count['gelu_backward'] == 1


@pytest.mark.parametrize('with_cp', [False, True])
def test_a_recomputed_block_does_not_compute_gelu_a_third_time(with_cp):
    torch.manual_seed(0)
    model = VisionGRU(ARCH, out_indices=(1,), with_cp=with_cp).train()
    with Calls() as calls:
        model(torch.randn(1, 3, 32, 32))[0].sum().backward()
    # One in the stem, and in each of the two blocks once forward and once again.
    assert calls.count['gelu'] == 1 + 2 * 2


def test_nothing_stays_when_the_graph_goes():
    mlp, x = mlp_and_input(torch.float32)
    gc.disable()
    try:
        # The size of what is left over: a cycle of references would keep the hidden map.
        assert bytes_kept(lambda x: mlp(x).sum().detach(), x) < 100
        assert bytes_kept(lambda x: torch.autograd.grad(mlp(x).sum(), mlp.fc2.bias)[0].sum(), x) < 100
    finally:
        gc.enable()


@pytest.mark.parametrize('mode', ['train', 'eval'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_gradients(dtype, mode):
    mlp, x = mlp_and_input(dtype)
    assert_plain(getattr(mlp, mode)(), x)


def replace_fc2(**layers):
    def change(mlp):
        for name, make in layers.items():
            setattr(mlp, name, make(getattr(mlp, name)).double())

    return change


def pruned(mlp):
    prune.random_unstructured(mlp.fc2, 'weight', 0.5)


def spectral(mlp):
    parametrizations.spectral_norm(mlp.fc2)


def scaled_in_place(mlp):
    mlp.fc2.register_forward_pre_hook(lambda m, args: (args[0].mul_(2),))


def scaled_after(mlp):
    mlp.fc2.register_forward_hook(lambda m, args, out: 2 * out)


@pytest.mark.parametrize(
    'change',
    [
        replace_fc2(fc2=lambda fc: nn.Sequential(nn.Dropout(0.5), fc)),
        replace_fc2(fc2=lambda fc: nn.Sequential(nn.Dropout(0.5, inplace=True), fc)),
        replace_fc2(fc2=lambda fc: nn.Sequential(fc, nn.Dropout(0.5))),
        replace_fc2(fc2=lambda fc: LoRA(fc, nn.Dropout(0.1))),
        replace_fc2(fc2=lambda fc: LoRA(fc, nn.Identity())),
        replace_fc2(fc1=lambda fc: LoRA(fc, nn.Dropout(0.1))),
        replace_fc2(fc2=lambda fc: nn.Linear(fc.in_features, 3, bias=False)),
        pruned,
        scaled_in_place,
        scaled_after,
    ],
    ids=[
        'dropout before',
        'dropout in place before',
        'dropout after',
        'lora with dropout',
        'lora without dropout',
        'lora on fc1',
        'other width, no bias',
        'pruned',
        'pre-hook in place',
        'hook',
    ],
)
def test_gradients_with_another_layer_in_its_place(change):
    mlp, x = mlp_and_input()
    change(mlp)
    assert_plain(mlp.train(), x)


def test_power_iteration_and_hooks_run_once_a_step():
    mlp, x = mlp_and_input()
    spectral(mlp)
    twin, calls = Hidden(copy.deepcopy(mlp)), []
    mlp.fc2.register_forward_pre_hook(lambda *_: calls.append('pre'))
    mlp.fc2.register_forward_hook(lambda *_: calls.append('post'))
    # A second power iteration of a step would show in the vectors and in the gradients of the next.
    for _ in range(2):
        for got, ref in zip(gradients(mlp, x), gradients(twin, x), strict=True):
            assert torch.equal(got, ref)
    assert calls == ['pre', 'post'] * 2


@pytest.mark.parametrize(
    'frozen', [('fc1',), ('fc2',), ('fc1', 'fc2'), ('fc2.weight',), ('fc2.bias',)], ids=str
)
@pytest.mark.parametrize('input_needs_grad', [True, False])
def test_gradients_of_the_rest_with_frozen_weights(frozen, input_needs_grad):
    mlp, x = mlp_and_input()
    for name, param in mlp.named_parameters():
        param.requires_grad_(not name.startswith(frozen))
    x.requires_grad_(input_needs_grad)
    outs = [module(x) for module in (mlp, Hidden(mlp))]
    wanted = [t for t in (x, *mlp.parameters()) if t.requires_grad]
    assert outs[0].requires_grad is bool(wanted)
    if wanted:
        got, ref = (torch.autograd.grad(out.square().sum(), wanted) for out in outs)
        assert all(torch.equal(a, b) for a, b in zip(got, ref, strict=True))


@pytest.mark.parametrize('name', ['fc1.weight', 'fc2.weight'])
def test_a_weight_changed_before_the_backward_pass_is_noticed(name):
    mlp, x = mlp_and_input()
    out = mlp(x)
    with torch.no_grad():
        mlp.get_parameter(name).mul_(2)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        out.sum().backward()


def test_functional_call():
    mlp, x = mlp_and_input()
    other = {name: torch.randn_like(p, requires_grad=True) for name, p in mlp.named_parameters()}
    got, ref = (
        torch.autograd.grad(torch.func.functional_call(m, other, (x,)).square().sum(), [x, *other.values()])
        for m in (mlp, Hidden(mlp))
    )
    assert all(torch.equal(a, b) for a, b in zip(got, ref, strict=True))


def test_transforms_of_functions():
    mlp, x = mlp_and_input()
    params = {name: p.detach() for name, p in mlp.named_parameters()}

    def per_sample(module):
        def loss(params, sample):
            return torch.func.functional_call(module, params, (sample[None],)).square().sum()

        return torch.func.vmap(torch.func.grad(loss), (None, 0))(params, x.detach())

    got, ref = per_sample(mlp), per_sample(Hidden(mlp))
    for name in params:
        assert got[name].shape == (2, *params[name].shape)
        torch.testing.assert_close(got[name], ref[name])


def test_used_twice_and_derived_twice():
    mlp, x = mlp_and_input()
    results = []
    for module in (mlp, Hidden(mlp)):
        out = module(module(x))
        wanted = [x, *mlp.parameters()]
        first = torch.autograd.grad(out.square().sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
        results.append((*first, *second))
    for got, ref in zip(*results, strict=True):
        torch.testing.assert_close(got, ref, rtol=1e-12, atol=1e-12)


def test_backward_twice():
    mlp, x = mlp_and_input()
    out = mlp(x).sum()
    first = torch.autograd.grad(out, mlp.fc2.weight, retain_graph=True)
    second = torch.autograd.grad(out, mlp.fc2.weight)
    assert torch.equal(*first, *second)
    with pytest.raises(RuntimeError, match='backward through the graph a second time'):
        out.backward()


@pytest.mark.parametrize('use_reentrant', [False, True])
def test_inside_a_checkpoint(use_reentrant):
    mlp, x = mlp_and_input()
    mlp.fc2 = nn.Sequential(nn.Dropout(0.5), mlp.fc2)

    def recomputed(x):
        return torch.utils.checkpoint.checkpoint(mlp, x, use_reentrant=use_reentrant)

    results = []
    for module in (recomputed, Hidden(mlp)):
        torch.manual_seed(3)
        mlp.zero_grad()
        module(x).square().sum().backward()
        results.append([p.grad.clone() for p in mlp.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_inside_hooks_of_saved_tensors():
    mlp, x = mlp_and_input()
    with torch.autograd.graph.save_on_cpu():
        out = mlp(x)
    wanted = [x, *mlp.parameters()]
    got, ref = (torch.autograd.grad(y.sum(), wanted) for y in (out, Hidden(mlp)(x)))
    assert all(torch.equal(a, b) for a, b in zip(got, ref, strict=True))


def test_autocast():
    mlp, x = mlp_and_input(torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        assert_plain(mlp, x)


def test_compile_export_and_trace():
    torch._dynamo.reset()
    mlp, x = mlp_and_input()
    compiled = torch.compile(mlp, fullgraph=True, backend='aot_eager')
    for got, ref in zip(gradients(compiled, x), gradients(mlp, x), strict=True):
        torch.testing.assert_close(got, ref)
    exported = torch.export.export(mlp.eval(), (x.detach(),)).module()
    torch.testing.assert_close(exported(x.detach()), mlp(x.detach()))
    traced = torch.jit.trace(mlp.train(), (x,), check_trace=False)
    for got, ref in zip(gradients(traced, x), gradients(mlp, x), strict=True):
        torch.testing.assert_close(got, ref)
