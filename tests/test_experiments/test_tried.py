"""Changes that were tried: each one computes what it says."""

import pytest
import torch

from experiments.tried.centred import CentredVisionGRU
from experiments.tried.layer_scale import LayerScaleVisionGRU
from experiments.tried.long_memory import LongMemoryVisionGRU
from experiments.tried.shifted import shifted
from mmvisiongru.models import VisionGRU
from mmvisiongru.models.layers import MinGRU2D

SMALL = dict(arch=dict(embed_dims=[4, 8], depths=[1, 2]), out_indices=(0, 1))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_centred_subtracts_the_mean_of_each_row_and_path_of_the_output_projections():
    default = VisionGRU(**SMALL)
    torch.manual_seed(0)
    centred = dict(CentredVisionGRU(**SMALL).named_parameters())
    for name, weight in default.named_parameters():
        if name.endswith('out_proj.weight'):
            paths = weight.unflatten(1, (2, -1))
            weight = (paths - paths.mean(2, keepdim=True)).flatten(1)
        torch.testing.assert_close(centred[name], weight, rtol=0, atol=1e-6)


def test_shifted_candidate_is_g_minus_a_half():
    mixer = MinGRU2D(4, paths=('row',), kernel_size=None, expand_ratio=1).double()
    torch.nn.init.eye_(mixer.out_proj.weight)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    hidden, gate = mixer.in_proj(x).flatten(0, 2).chunk(2, -1)
    state, expected = torch.zeros(4, dtype=torch.float64), []
    for h, z in zip(hidden, gate.sigmoid(), strict=True):
        expected.append(state := (1 - z) * state + z * (torch.where(h >= 0, h + 0.5, h.sigmoid()) - 0.5))
    torch.testing.assert_close(shifted(mixer, x).flatten(0, 2), torch.stack(expected))


def test_time_constants_go_from_two_tokens_to_the_map():
    model = LongMemoryVisionGRU(**SMALL, tokens=(32, 8))
    for stage, tokens in zip(model.stages, (32, 8), strict=True):
        for hidden, gate in stage.blocks[-1].mixer.in_proj.bias.detach().unflatten(0, (2, 2, -1)):
            assert not hidden.any()
            expected = torch.logspace(1, torch.tensor(tokens).log2(), len(gate), base=2)
            torch.testing.assert_close(1 / gate.sigmoid(), expected)


def test_layer_scale_multiplies_what_is_added():
    (block,) = LayerScaleVisionGRU(dict(embed_dims=[4], depths=[1]), out_indices=(0,)).stages[0].blocks
    x = torch.randn(1, 3, 3, 4)
    y = x + 0.1 * block.mixer[0](block.norm1(x))
    torch.testing.assert_close(block(x), y + 0.1 * block.mlp[0](block.norm2(y)))
