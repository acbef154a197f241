"""Experiments of docs/evidence.md with other start values: what they change, and what is measured."""

import pytest
import torch

from docs.evidence.tried.centred import CentredVisionGRU
from docs.evidence.tried.constant_share import constant_share, shares
from docs.evidence.tried.shifted import ShiftedVisionGRU, shifted
from mmvisiongru.models import VisionGRU
from mmvisiongru.models.layers import MinGRU2D
from tests.harness.config_builders import difference

CALTECH = 'visiongru-pico_{}1xb32_caltech101-64px.py'
CAMVID = 'visiongru-pico_{}upernet_1xb8-1k_camvid-180x240.py'


def test_share_of_a_channel_is_its_mean_square_over_its_mean_of_squares():
    assert constant_share(torch.tensor([[[1.0], [3.0]]])) == pytest.approx(4 / 5)
    assert constant_share(torch.tensor([[1.0, 0.0], [-1.0, 3.0]])) == pytest.approx(2.25 / 5.5)


def test_shares_are_those_of_what_each_mixer_adds_and_of_the_pooled_map():
    torch.manual_seed(0)
    backbone = VisionGRU(dict(embed_dims=[4, 8], depths=[1, 1]), out_indices=(0, 1))
    first, second = (stage.blocks[0].mixer for stage in backbone.stages)
    first.out_proj.weight.data.zero_()
    first.out_proj.bias = torch.nn.Parameter(torch.ones(4))
    outs = []
    second.register_forward_hook(lambda _, __, out: outs.append(out.detach()))
    images = torch.randn(3, 3, 16, 16)
    added, pooled = shares(backbone, images)
    # The first adds the same everywhere.
    assert added == pytest.approx((1 + constant_share(outs[0])) / 2)
    assert pooled == pytest.approx(constant_share(backbone(images)[1].detach().mean((2, 3))))


def test_only_the_mean_of_each_row_and_path_of_the_output_projections_is_taken_off():
    models = []
    for cls in (VisionGRU, CentredVisionGRU):
        torch.manual_seed(0)
        models.append(cls(dict(embed_dims=[4, 8], depths=[1, 2]), out_indices=(0, 1)))
    default, centred = (dict(model.named_parameters()) for model in models)
    assert default.keys() == centred.keys()
    for name, weight in default.items():
        if name.endswith('out_proj.weight'):
            paths = weight.unflatten(1, (2, -1))
            weight = (paths - paths.mean(2, keepdim=True)).flatten(1)
        torch.testing.assert_close(centred[name], weight, rtol=0, atol=1e-6)


def replaced(name):
    return {
        'model.backbone.type': f'mmvisiongru.{name.capitalize()}VisionGRU',
        'custom_imports.imports': [f'docs.evidence.tried.{name}'],
    }


@pytest.mark.parametrize(
    ('name', 'parent', 'expected'),
    [
        (CALTECH.format('centred_'), 'classification/' + CALTECH.format(''), replaced('centred')),
        (CALTECH.format('shifted_'), 'classification/' + CALTECH.format(''), replaced('shifted')),
        (
            CAMVID.format('linear-candidate_'),
            'segmentation/' + CAMVID.format(''),
            {'model.backbone.candidate': 'linear'},
        ),
    ],
)
def test_configs_change_the_backbone_alone(name, parent, expected):
    assert difference(f'../docs/evidence/tried/{name}', parent) == expected


@pytest.mark.parametrize('paths', [('row',), ('row_reverse',)])
def test_shifted_candidate_is_g_less_a_half(paths):
    torch.manual_seed(0)
    mixer = MinGRU2D(4, paths=paths, kernel_size=None, expand_ratio=1).double()
    torch.nn.init.eye_(mixer.out_proj.weight)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    hidden, gate = mixer.in_proj(x).flatten(0, 2).chunk(2, -1)
    tokens = range(6) if paths == ('row',) else range(5, -1, -1)
    state, expected = torch.zeros(4, dtype=torch.float64), torch.empty(6, 4, dtype=torch.float64)
    for t in tokens:
        g = torch.where(hidden[t] >= 0, hidden[t] + 0.5, hidden[t].sigmoid())
        z = gate[t].sigmoid()
        state = (1 - z) * state + z * (g - 0.5)
        expected[t] = state
    torch.testing.assert_close(shifted(mixer, x).flatten(0, 2), expected)
    assert ShiftedVisionGRU('pico').stages[3].blocks[0].mixer.forward.func is shifted
