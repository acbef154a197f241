"""The command that shows what the released kernel computes: its matrices, and what it prints."""

import math

import pytest
import torch

from experiments import released_wkv
from tests.harness.vrwkv import FIXTURE


@pytest.mark.parametrize('op', range(6))
def test_matrix_of_the_kernel_gives_the_values_of_the_fixture(op):
    w, u, k, v = (torch.from_numpy(FIXTURE[f'op{op}/{name}']).double() for name in 'wukv')
    x = torch.exp(k - k.amax(1, keepdim=True))
    for weights, name in ((released_wkv.kernel_weights, 'y_released'), (released_wkv.paper_weights, 'y')):
        matrix = weights(w, u, k.size(1))
        y = torch.einsum('tic,bic->btc', matrix, x * v) / torch.einsum('tic,bic->btc', matrix, x)
        ref = torch.from_numpy(FIXTURE[f'op{op}/{name}'])
        assert (y - ref).abs().max() <= 1e-12 * ref.abs().max()


def test_gradients_of_the_kernel_are_off_by_the_decay_of_a_token(capsys):
    found = released_wkv.measure(196, -5.0)
    assert [found['dk'], found['dv']] == pytest.approx(2 * [math.exp(-5 / 196)], abs=1e-3)
    assert found['operator'] < 1e-12 < 1e-5 < found['y'] < 1e-2
    released_wkv.main(['--sizes', '224', '--decays', '-5'])
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ['224', '196', '-5']
