"""Gates far from zero: 1 - z has no digit left there, sigmoid(-gate) has all of them."""

import math

import pytest
import torch

from mmvisiongru.ops import mingru_scan, runnable_backends

LENGTH = 784


def forward_and_gradient(gate, hidden, cotangent, backend):
    gate, hidden = (x.detach().requires_grad_() for x in (gate, hidden))
    out = mingru_scan(gate, hidden, candidate='linear', backend=backend)
    return out.detach(), torch.autograd.grad(out, (gate, hidden), cotangent)


@pytest.mark.parametrize('backend', runnable_backends())
def test_gradient_of_the_gate_keeps_its_relative_accuracy(backend):
    # Candidates change their sign from token to token, and all cotangents are positive: neither in c - h nor
    # in s does anything cancel, so what is left of an error comes from z (1 - z).
    generator = torch.Generator().manual_seed(0)
    gate, hidden, cotangent = (torch.rand(1, LENGTH, 241, generator=generator) + 1 for _ in range(3))
    # Each channel has gates of its own size.
    gate += torch.linspace(-31, 28, 241)
    hidden[:, ::2] *= -1
    _, (got, _) = forward_and_gradient(gate, hidden, cotangent, backend)
    _, (ref, _) = forward_and_gradient(gate.double(), hidden.double(), cotangent.double(), 'reference')
    matters = ref.abs() > 1e-30
    assert matters.float().mean() > 0.95
    assert ((got - ref)[matters] / ref[matters]).abs().max() < 1e-5


@pytest.mark.parametrize('backend', runnable_backends())
@pytest.mark.parametrize('sign', [1, -1])
def test_infinite_candidates_stay_infinite(backend, sign):
    gate, hidden = torch.zeros(1, 5, 3), torch.ones(1, 5, 3)
    hidden[:, 1] = sign * math.inf
    out = mingru_scan(gate, hidden, candidate='linear', backend=backend)
    assert (out[:, 1:] == sign * math.inf).all()
    assert (out[:, 0] == 0.5).all()


@pytest.mark.parametrize('backend', runnable_backends())
def test_no_overflow_between_finite_numbers(backend):
    # c - h is twice the largest number, the mean of the two is not.
    largest = torch.finfo(torch.float32).max
    hidden = torch.tensor([1.0, -1.0, 1.0, -1.0])[None, :, None].expand(1, 4, 2) * largest
    gate = torch.full_like(hidden, 3.0)
    out = mingru_scan(gate, hidden, candidate='linear', backend=backend)
    ref = mingru_scan(gate.double(), hidden.double(), candidate='linear', backend='reference')
    torch.testing.assert_close(out.double() / largest, ref / largest, rtol=0, atol=1e-6)
