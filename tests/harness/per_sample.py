"""Gradients of single samples by torch.func, as privacy work takes them."""

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap


def assert_gradients_of_each_sample(mixer: nn.Module, x: Tensor, cotangent: Tensor) -> None:
    """Compare them with those of one sample after the other."""
    parameters = dict(mixer.named_parameters())

    def loss(parameters, x, cotangent):
        return (functional_call(mixer, parameters, x[None])[0] * cotangent).sum()

    got = vmap(grad(loss), (None, 0, 0))(parameters, x, cotangent)
    for i in range(len(x)):
        ref = torch.autograd.grad((mixer(x[i : i + 1])[0] * cotangent[i]).sum(), list(parameters.values()))
        for name, value in zip(parameters, ref, strict=True):
            torch.testing.assert_close(got[name][i], value)
