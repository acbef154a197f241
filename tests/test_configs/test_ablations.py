"""Ablations: six lines at most, one key apart from the parent, and the number of parameters by hand."""

from itertools import pairwise
from pathlib import Path

import pytest

from tests.harness.config_builders import (
    CLASSIFIER,
    CONFIGS,
    EXPERIMENTS,
    UPERNET,
    build_model,
    difference,
    load,
)

DIMS, DEPTHS = (72, 144, 288, 576), (2, 2, 8, 2)
ABLATIONS = {
    'one-path': ('scan_paths', ('row',)),
    'two-paths': ('scan_paths', ('row', 'row_reverse')),
    'four-paths': ('scan_paths', ('row', 'row_reverse', 'column', 'column_reverse')),
    'no-dwconv': ('dwconv_kernel_size', None),
    'linear-candidate': ('candidate', 'linear'),
    'pos-embed': ('pos_embed', 'absolute'),
    'expand-1': ('expand_ratio', 1),
}
# Paths, inner width over C, depthwise weights a channel, embedding side.
BY_HAND = {
    'one-path': (1, 2, 10, 0),
    'two-paths': (2, 2, 10, 0),
    'four-paths': (4, 2, 10, 0),
    'no-dwconv': (2, 2, 0, 0),
    'linear-candidate': (2, 2, 10, 0),
    'pos-embed': (2, 2, 10, 56),
    'expand-1': (2, 1, 10, 0),
}
PARENTS = {'8xb128_in1k': CLASSIFIER, 'upernet_8xb2-160k_ade20k-512x512': UPERNET}
SMALL = (
    'classification/visiongru-pico_1xb32_caltech101-64px.py',
    'segmentation/visiongru-pico_upernet_1xb12-1k_digits-64x64.py',
)
CASES = [(ablation, suffix) for ablation in ABLATIONS for suffix in PARENTS]


def conv3x3(inputs, outputs):
    return 9 * inputs * outputs + outputs


def norm(channels):
    return 2 * channels


def backbone_parameters(paths, expand, depthwise, side, dims=DIMS, depths=DEPTHS):
    half = dims[0] // 2
    total = conv3x3(3, half) + norm(half) + conv3x3(half, dims[0]) + norm(dims[0]) + side * side * dims[0]
    for before, after in pairwise(dims):
        total += conv3x3(before, after) + norm(after)
    for dim, depth in zip(dims, depths, strict=True):
        scan = paths * 3 * dim * expand * dim  # hidden, gate and output projection
        mlp = 2 * dim * 4 * dim + 4 * dim + dim
        total += depth * (2 * norm(dim) + depthwise * dim + scan + mlp)
    return total


def upernet_head_parameters(dims=DIMS, width=512, auxiliary=256, classes=150):
    pyramid = 4 * (dims[3] * width + norm(width)) + 9 * (dims[3] + 4 * width) * width + norm(width)
    laterals = sum(dims[:3]) * width + 3 * norm(width)
    outputs = 3 * (9 * width * width + norm(width)) + 9 * 4 * width * width + norm(width)
    head = pyramid + laterals + outputs + width * classes + classes
    return head + 9 * dims[2] * auxiliary + norm(auxiliary) + auxiliary * classes + classes


def parameters(module):
    return sum(param.numel() for param in module.parameters())


@pytest.mark.parametrize(('ablation', 'suffix'), CASES)
def test_ablation_is_one_key_in_six_lines(ablation, suffix):
    name = f'ablations/visiongru-tiny_{ablation}_{suffix}.py'
    key, value = ABLATIONS[ablation]
    assert len((CONFIGS / name).read_text().splitlines()) <= 6
    assert difference(name, PARENTS[suffix]) == {f'model.backbone.{key}': value}


@pytest.mark.parametrize(('ablation', 'suffix'), CASES)
def test_ablation_has_the_parameters_counted_by_hand(ablation, suffix):
    model = build_model(load(f'ablations/visiongru-tiny_{ablation}_{suffix}.py'))
    expected = backbone_parameters(*BY_HAND[ablation])
    assert parameters(model.backbone) == expected
    head = 576 * 1000 + 1000 if suffix.endswith('in1k') else upernet_head_parameters()
    assert parameters(model) == expected + head


@pytest.mark.parametrize('ablation', [name for name in ABLATIONS if name != 'two-paths'])
@pytest.mark.parametrize('parent', SMALL)
def test_ablation_of_a_small_model_is_one_key_in_six_lines(ablation, parent):
    name = f'{EXPERIMENTS}/ablations/{Path(parent).name.replace("pico_", f"pico_{ablation}_")}'
    key, value = ABLATIONS[ablation]
    assert len((CONFIGS / name).read_text().splitlines()) <= 6
    assert difference(name, parent) == {f'model.backbone.{key}': value}


@pytest.mark.parametrize('suffix', PARENTS)
def test_two_paths_are_the_model_itself(suffix):
    mixer = build_model(load(PARENTS[suffix])).backbone.stages[0].blocks[0].mixer
    assert mixer.paths == ABLATIONS['two-paths'][1]


@pytest.mark.parametrize('suffix', PARENTS)
def test_candidate_reaches_every_mixer(suffix):
    backbone = build_model(load(f'ablations/visiongru-tiny_linear-candidate_{suffix}.py')).backbone
    assert {block.mixer.candidate for stage in backbone.stages for block in stage.blocks} == {'linear'}
    parent = build_model(load(PARENTS[suffix])).backbone
    assert {block.mixer.candidate for stage in parent.stages for block in stage.blocks} == {'g'}


@pytest.mark.parametrize(
    ('name', 'backbone', 'whole'),
    [
        (CLASSIFIER, 29_639_952, 30_216_952),
        (CLASSIFIER.replace('.py', '_released.py'), 29_639_952, 30_216_952),
        (CLASSIFIER.replace('tiny', 'base'), 86_074_352, 86_907_352),
        (CLASSIFIER.replace('tiny', 'base').replace('.py', '_released.py'), 86_074_352, 86_907_352),
        (UPERNET, 29_639_952, 60_475_964),
        (UPERNET.replace('tiny', 'base'), 86_074_352, 119_023_900),
    ],
)
def test_models_of_the_paper_have_its_parameters(name, backbone, whole):
    model = build_model(load(name))
    assert parameters(model.backbone) == backbone
    assert parameters(model) == whole


def test_hand_formulas_give_the_figures_of_the_paper():
    tiny = backbone_parameters(2, 2, 10, 0)
    base = backbone_parameters(2, 2, 10, 0, dims=(104, 208, 416, 832), depths=(2, 2, 15, 2))
    assert (tiny, base) == (29_639_952, 86_074_352)
    assert tiny + upernet_head_parameters() == 60_475_964
