"""Ablations: one key apart from the parent, and the number of parameters by hand."""

from itertools import pairwise
from pathlib import Path

import pytest

from tests.harness.config_builders import CLASSIFIER, EXPERIMENTS, UPERNET, build_model, difference, load

TINY = dict(dims=(72, 144, 288, 576), depths=(2, 2, 8, 2))
BASE = dict(dims=(104, 208, 416, 832), depths=(2, 2, 15, 2))
# The key and its value; arguments of `backbone_parameters` that differ from the model's.
ABLATIONS = {
    'one-path': ('scan_paths', ('row',), dict(paths=1)),
    'two-paths': ('scan_paths', ('row', 'row_reverse'), {}),
    'four-paths': ('scan_paths', ('row', 'row_reverse', 'column', 'column_reverse'), dict(paths=4)),
    'no-dwconv': ('dwconv_kernel_size', None, dict(depthwise=0)),
    'linear-candidate': ('candidate', 'linear', {}),
    'pos-embed': ('pos_embed', 'absolute', dict(side=56)),
    'expand-1': ('expand_ratio', 1, dict(expand=1)),
}
PARENTS = {'8xb128_in1k': CLASSIFIER, 'upernet_8xb2-160k_ade20k-512x512': UPERNET}
SMALL = (
    'classification/visiongru-pico_1xb32_caltech101-64px.py',
    'segmentation/visiongru-pico_upernet_1xb12-1k_digits-64x64.py',
)
CHILDREN = [
    (name, f'ablations/visiongru-tiny_{name}_{suffix}.py', parent)
    for name in ABLATIONS
    for suffix, parent in PARENTS.items()
]
CHILDREN += [
    (name, f'{EXPERIMENTS}/ablations/{Path(parent).name.replace("pico_", f"pico_{name}_")}', parent)
    for name in ABLATIONS
    for parent in SMALL
    if name != 'two-paths'
]


def conv3x3(inputs, outputs):
    return 9 * inputs * outputs + outputs


def backbone_parameters(dims, depths, paths=2, expand=2, depthwise=10, side=0):
    """Depthwise: parameters per channel; side: of the positional embedding. A norm has two per channel."""
    half = dims[0] // 2
    total = conv3x3(3, half) + 2 * half + conv3x3(half, dims[0]) + 2 * dims[0] + side * side * dims[0]
    total += sum(conv3x3(before, after) + 2 * after for before, after in pairwise(dims))
    for dim, depth in zip(dims, depths, strict=True):
        scan = paths * 3 * dim * expand * dim  # hidden, gate and output projection
        mlp = 2 * dim * 4 * dim + 4 * dim + dim
        total += depth * (4 * dim + depthwise * dim + scan + mlp)
    return total


def parameters(module):
    return sum(param.numel() for param in module.parameters())


@pytest.mark.parametrize(('ablation', 'name', 'parent'), CHILDREN)
def test_ablation_is_one_key(ablation, name, parent):
    key, value, _ = ABLATIONS[ablation]
    assert difference(name, parent) == {f'model.backbone.{key}': value}


@pytest.mark.parametrize(
    ('size', 'name', 'options'),
    [
        *((TINY, name, ABLATIONS[a][2]) for a, name, parent in CHILDREN if parent in PARENTS.values()),
        *((TINY, name, {}) for name in (CLASSIFIER, CLASSIFIER.replace('.py', '_released.py'), UPERNET)),
        *((BASE, name.replace('tiny', 'base'), {}) for name in (CLASSIFIER, UPERNET)),
    ],
)
def test_model_has_the_parameters_counted_by_hand(size, name, options):
    model = build_model(load(name))
    expected = backbone_parameters(**size, **options)
    assert parameters(model.backbone) == expected
    if 'upernet' not in name:
        assert parameters(model) == expected + size['dims'][-1] * 1000 + 1000
