"""Changes that were tried: what they change in the model, and what is measured of them."""

import pytest
import torch

from experiments.tried.centred import CentredVisionGRU
from experiments.tried.constant_share import constant_share, shares
from experiments.tried.halves import halve
from experiments.tried.layer_scale import LayerScaleVisionGRU
from experiments.tried.long_memory import LongMemoryVisionGRU
from experiments.tried.shifted import shifted
from mmvisiongru.errors import InputError
from mmvisiongru.models import VisionGRU
from mmvisiongru.models.layers import MinGRU2D
from tests.harness.config_builders import difference

SMALL = dict(arch=dict(embed_dims=[4, 8], depths=[1, 2]), out_indices=(0, 1))
CALTECH = 'visiongru-pico_{}1xb32_caltech101-64px.py'
CAMVID = 'visiongru-pico_{}upernet_1xb8-1k_camvid-180x240.py'


def replaced(cls, module, **arguments):
    settings = {'type': f'mmvisiongru.{cls}', **arguments}
    changes = {f'model.backbone.{name}': value for name, value in settings.items()}
    return {'custom_imports.imports': [f'experiments.tried.{module}'], **changes}


PATHS = ('row', 'row_reverse', 'column', 'column_reverse')
CHANGES = {
    'shifted': replaced('ShiftedVisionGRU', 'shifted'),
    'layer-scale': replaced('LayerScaleVisionGRU', 'layer_scale'),
    'drop-path': {'model.backbone.drop_path_rate': 0.1},
    'final-norm': {'model.backbone.out_norm_cfg.type': 'LN'},
    'four-paths-narrow': {'model.backbone.scan_paths': PATHS, 'model.backbone.expand_ratio': 1},
}
ON_CALTECH = CHANGES | {
    'centred': replaced('CentredVisionGRU', 'centred'),
    'long-memory': replaced('LongMemoryVisionGRU', 'long_memory', tokens=(256, 64, 16, 4)),
}
ON_CAMVID = CHANGES | {
    'linear-candidate': {'model.backbone.candidate': 'linear'},
    'long-memory': replaced('LongMemoryVisionGRU', 'long_memory', tokens=(1200, 300, 80, 20)),
}


@pytest.mark.parametrize(
    ('name', 'parent', 'changes'),
    [(CALTECH.format(f'{n}_'), f'classification/{CALTECH.format("")}', c) for n, c in ON_CALTECH.items()]
    + [(CAMVID.format(f'{n}_'), f'segmentation/{CAMVID.format("")}', c) for n, c in ON_CAMVID.items()],
)
def test_configs_change_the_backbone_alone(name, parent, changes):
    assert difference(f'../experiments/tried/{name}', parent) == changes


def test_constant_shares_are_those_of_the_mixers_and_of_the_pooled_map():
    assert constant_share(torch.tensor([[[1.0], [3.0]]])) == pytest.approx(4 / 5)
    assert constant_share(torch.tensor([[1.0, 0.0], [-1.0, 3.0]])) == pytest.approx(2.25 / 5.5)
    torch.manual_seed(0)
    backbone, outs = VisionGRU(dict(embed_dims=[4, 8], depths=[1, 1]), out_indices=(0, 1)), []
    first, second = (stage.blocks[0].mixer for stage in backbone.stages)
    # The first adds the same to every token.
    first.out_proj.weight.data.zero_()
    first.out_proj.bias = torch.nn.Parameter(torch.ones(4))
    second.register_forward_hook(lambda _, __, out: outs.append(out.detach()))
    images = torch.randn(3, 3, 16, 16)
    added, pooled = shares(backbone, images)
    assert added == pytest.approx((1 + constant_share(outs[0])) / 2)
    assert pooled == pytest.approx(constant_share(backbone(images)[1].detach().mean((2, 3))))


def test_centred_subtracts_the_mean_of_each_row_and_path_of_the_output_projections():
    models = []
    for cls in (VisionGRU, CentredVisionGRU):
        torch.manual_seed(0)
        models.append(cls(**SMALL))
    default, centred = (dict(model.named_parameters()) for model in models)
    assert default.keys() == centred.keys()
    for name, weight in default.items():
        if name.endswith('out_proj.weight'):
            paths = weight.unflatten(1, (2, -1))
            weight = (paths - paths.mean(2, keepdim=True)).flatten(1)
        torch.testing.assert_close(centred[name], weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize('reverse', [False, True])
def test_shifted_candidate_is_g_minus_a_half(reverse):
    torch.manual_seed(0)
    paths = ('row_reverse',) if reverse else ('row',)
    mixer = MinGRU2D(4, paths=paths, kernel_size=None, expand_ratio=1).double()
    torch.nn.init.eye_(mixer.out_proj.weight)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    hidden, gate = mixer.in_proj(x).flatten(0, 2).chunk(2, -1)
    state, expected = torch.zeros(4, dtype=torch.float64), torch.empty(6, 4, dtype=torch.float64)
    for t in reversed(range(6)) if reverse else range(6):
        g, z = torch.where(hidden[t] >= 0, hidden[t] + 0.5, hidden[t].sigmoid()), gate[t].sigmoid()
        expected[t] = state = (1 - z) * state + z * (g - 0.5)
    torch.testing.assert_close(shifted(mixer, x).flatten(0, 2), expected)


def test_time_constants_go_from_two_tokens_to_the_map():
    model = LongMemoryVisionGRU(**SMALL, tokens=(32, 8))
    for stage, tokens in zip(model.stages, (32, 8), strict=True):
        for hidden, gate in stage.blocks[-1].mixer.in_proj.bias.detach().unflatten(0, (2, 2, -1)):
            assert not hidden.any()
            expected = torch.logspace(1, torch.tensor(tokens).log2(), len(gate), base=2)
            torch.testing.assert_close(1 / gate.sigmoid(), expected)


def test_layer_scale_multiplies_what_is_added():
    torch.manual_seed(0)
    (block,) = LayerScaleVisionGRU(dict(embed_dims=[4], depths=[1]), out_indices=(0,)).stages[0].blocks
    x = torch.randn(1, 3, 3, 4)
    y = x + 0.1 * block.mixer[0](block.norm1(x))
    torch.testing.assert_close(block(x), y + 0.1 * block.mlp[0](block.norm2(y)))


@pytest.mark.parametrize(
    ('training', 'validation'), [('train', 'val'), ('images/training', 'images/validation')]
)
def test_halves_share_no_file_and_contain_no_validation_image(tmp_path, training, validation):
    source, out = tmp_path / 'data', tmp_path / 'out'
    for name in (*(f'{training}/{n}' for n in ('a_1', 'a_2', 'a_3', 'b_1')), f'{validation}/a_9'):
        (source / f'{name}.png').parent.mkdir(parents=True, exist_ok=True)
        (source / f'{name}.png').write_text(name)
    halve(source, out)
    found = {str(path.relative_to(out)): path.read_text() for path in out.rglob('*.png')}
    sources = {f'{training}/{n}.png': f'{training}/{n}' for n in ('a_1', 'a_2', 'b_1')}
    assert found == sources | {f'{validation}/a_3.png': f'{training}/a_3'}
    with pytest.raises(InputError, match='out exists'):
        halve(source, out)
    with pytest.raises(InputError, match=training if 'images' in training else 'train'):
        halve(tmp_path, tmp_path / 'other')
