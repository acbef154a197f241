"""Parameters of the token mixer: their shapes and initial values."""

import math

import pytest
import torch

from mmvisiongru.models.layers.mingru import MinGRU2D
from mmvisiongru.ops.scan_paths import PATHS as KNOWN_PATHS

PATHS = tuple(KNOWN_PATHS)


@pytest.mark.parametrize('paths', [('row',), PATHS[:2], PATHS], ids=len)
@pytest.mark.parametrize('expand_ratio', [1, 2, 3])
def test_shapes_of_the_fused_projections(paths, expand_ratio):
    dim, inner, number = 8, 8 * expand_ratio, len(paths)
    mixer = MinGRU2D(dim, paths, 3, expand_ratio)
    assert {k: tuple(v.shape) for k, v in mixer.state_dict().items()} == {
        'dwconv.weight': (dim, 1, 3, 3),
        'dwconv.bias': (dim,),
        'in_proj.weight': (number * 2 * inner, dim),
        'out_proj.weight': (dim, number * inner),
    }
    assert set(MinGRU2D(dim, paths, None).state_dict()) == {'in_proj.weight', 'out_proj.weight'}


@pytest.mark.parametrize('paths', [('row',), PATHS], ids=len)
def test_initialised_as_separate_layers_would_be(paths):
    """PyTorch's default is uniform within 1 / sqrt(fan-in); of the output, the fan-in of one path."""
    torch.manual_seed(0)
    mixer = MinGRU2D(96, paths, 3, expand_ratio=2)
    for weight, fan_in in (
        (mixer.out_proj.weight, 192),
        (mixer.in_proj.weight, 96),
        (mixer.dwconv.weight, 9),
        (mixer.dwconv.bias, 9),
    ):
        bound = 1 / math.sqrt(fan_in)
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.95 * bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert abs(weight.mean().item()) < 0.1 * bound
