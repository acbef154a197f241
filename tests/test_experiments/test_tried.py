"""Experiments of docs/results.md with other start values: what they change, and what is measured."""

import pytest
import torch

from experiments.tried.centred import CentredVisionGRU
from experiments.tried.constant_share import constant_share, shares
from experiments.tried.halves import halve
from experiments.tried.layer_scale import LayerScaleVisionGRU
from experiments.tried.long_memory import LongMemoryVisionGRU
from experiments.tried.shifted import ShiftedVisionGRU, shifted
from mmvisiongru.errors import InputError
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


def replaced(cls, module, **arguments):
    return {
        'model.backbone.type': f'mmvisiongru.{cls}',
        'custom_imports.imports': [f'experiments.tried.{module}'],
        **{f'model.backbone.{name}': value for name, value in arguments.items()},
    }


PATHS = ('row', 'row_reverse', 'column', 'column_reverse')
CHANGES = {
    'shifted': replaced('ShiftedVisionGRU', 'shifted'),
    'layer-scale': replaced('LayerScaleVisionGRU', 'layer_scale'),
    'long-memory': replaced('LongMemoryVisionGRU', 'long_memory', tokens=(256, 64, 16, 4)),
    'drop-path': {'model.backbone.drop_path_rate': 0.1},
    'final-norm': {'model.backbone.out_norm_cfg.type': 'LN'},
    'four-paths-narrow': {'model.backbone.scan_paths': PATHS, 'model.backbone.expand_ratio': 1},
}


@pytest.mark.parametrize('name', [*CHANGES, 'centred'])
def test_configs_for_caltech_change_the_backbone_alone(name):
    expected = CHANGES.get(name) or replaced('CentredVisionGRU', 'centred')
    config = CALTECH.format(f'{name}_')
    assert difference(f'../experiments/tried/{config}', f'classification/{CALTECH.format("")}') == expected


@pytest.mark.parametrize('name', [*CHANGES, 'linear-candidate'])
def test_configs_for_camvid_change_the_backbone_alone(name):
    expected = CHANGES.get(name) or {'model.backbone.candidate': 'linear'}
    if name == 'long-memory':
        # A map of 120 x 160.
        expected = {**expected, 'model.backbone.tokens': (1200, 300, 80, 20)}
    config = CAMVID.format(f'{name}_')
    assert difference(f'../experiments/tried/{config}', f'segmentation/{CAMVID.format("")}') == expected


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


def test_time_constants_go_from_two_tokens_to_the_map():
    arch = dict(embed_dims=[4, 8], depths=[1, 2])
    model = LongMemoryVisionGRU(arch, out_indices=(0, 1), tokens=(32, 8))
    mixer = model.stages[0].blocks[0].mixer
    bias = mixer.in_proj.bias.detach().unflatten(0, (2, 2, -1))
    # Of both paths; z = sigmoid(bias) where the weights add nothing.
    for hidden, gate in bias:
        assert not hidden.any()
        time_constants = 1 / gate.sigmoid()
        assert time_constants[0] == pytest.approx(2)
        assert time_constants[-1] == pytest.approx(32)
        ratios = time_constants[1:] / time_constants[:-1]
        torch.testing.assert_close(ratios, ratios[:1].expand(len(ratios)))
    assert 1 / model.stages[1].blocks[1].mixer.in_proj.bias[-1].sigmoid().item() == pytest.approx(8)
    assert [tuple(x.shape) for x in model(torch.randn(1, 3, 16, 16))] == [(1, 4, 4, 4), (1, 8, 2, 2)]


def test_layer_scale_multiplies_what_is_added():
    torch.manual_seed(0)
    model = LayerScaleVisionGRU(dict(embed_dims=[4], depths=[1]), out_indices=(0,))
    (block,) = model.stages[0].blocks
    x = torch.randn(1, 3, 3, 4)
    y = x + 0.1 * block.mixer[0](block.norm1(x))
    torch.testing.assert_close(block(x), y + 0.1 * block.mlp[0](block.norm2(y)))
    assert (
        sum(p.numel() for p in model.parameters())
        == sum(p.numel() for p in VisionGRU(dict(embed_dims=[4], depths=[1]), out_indices=(0,)).parameters())
        + 2 * 4
    )


@pytest.mark.parametrize(
    ('training', 'validation'), [('train', 'val'), ('images/training', 'images/validation')]
)
def test_halves_share_no_file_and_leave_validation_alone(tmp_path, training, validation):
    source = tmp_path / 'data'
    for name in (
        f'{training}/a_1',
        f'{training}/a_2',
        f'{training}/a_3',
        f'{training}/b_1',
        f'{validation}/a_9',
    ):
        (source / f'{name}.png').parent.mkdir(parents=True, exist_ok=True)
        (source / f'{name}.png').write_text(name)
    halve(source, tmp_path / 'out')
    found = {
        str(path.relative_to(tmp_path / 'out')): path.read_text()
        for path in (tmp_path / 'out').rglob('*.png')
    }
    assert found == {
        f'{training}/a_1.png': f'{training}/a_1',
        f'{training}/a_2.png': f'{training}/a_2',
        f'{training}/b_1.png': f'{training}/b_1',
        f'{validation}/a_3.png': f'{training}/a_3',
    }
    with pytest.raises(InputError, match='out exists; choose another folder'):
        halve(source, tmp_path / 'out')
    with pytest.raises(InputError, match='has none of the folders train, images/training'):
        halve(tmp_path, tmp_path / 'other')
