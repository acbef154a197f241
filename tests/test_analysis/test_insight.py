"""Receptive fields and gate memories against what follows by hand."""

import math

import pytest
import torch
from torch import nn

from mmvisiongru.analysis.images import find_images, normalise, read_inputs
from mmvisiongru.analysis.insight import gate_memories, receptive_fields, side_that_holds
from mmvisiongru.errors import InputError
from mmvisiongru.models import VisionGRU
from mmvisiongru.ops import mingru_scan


class Mean(nn.Module):
    """Two maps: means over 3 x 3 and over 5 x 5 pixels."""

    def forward(self, x):
        return tuple(nn.functional.avg_pool2d(x, n, 1, n // 2) for n in (3, 5))


def test_the_field_of_a_mean_is_its_window():
    images = [torch.randn(1, 3, 11, 13) for _ in range(2)]
    for field, n in zip(receptive_fields(Mean(), images), (3, 5), strict=True):
        expected = torch.zeros(11, 13)
        expected[5 - n // 2 : 6 + n // 2, 6 - n // 2 : 7 + n // 2] = 1 / n**2
        torch.testing.assert_close(field, expected)


def test_all_stages_of_a_classifiers_backbone():
    backbone = VisionGRU(dict(embed_dims=[8, 16], depths=[1, 1]), out_indices=(1,))
    fields = receptive_fields(backbone, [torch.randn(1, 3, 32, 32)])
    assert len(fields) == 2
    assert all(field.sum() == pytest.approx(1) for field in fields)
    # The second stage sees more.
    assert side_that_holds(fields[0], 0.9) < side_that_holds(fields[1], 0.9)


@pytest.mark.parametrize('share', [0.25, 0.5, 0.9])
def test_an_even_field_fills_a_square_of_that_share(share):
    assert side_that_holds(torch.full((101, 101), 1.0), share) == pytest.approx(math.sqrt(share), abs=0.02)


def test_time_constants_are_those_of_the_scan():
    backbone = VisionGRU(dict(embed_dims=[8], depths=[1]), out_indices=(0,))
    mixer = backbone.stages[0].blocks[0].mixer
    seen = []
    mixer.in_proj.register_forward_hook(lambda module, inputs, out: seen.append(out))
    (tau,) = gate_memories(backbone, torch.randn(1, 3, 12, 20))
    assert tau.shape == (3, 5, 2, 16)
    gate = seen[0].view(3, 5, 2, 2, 16)[1, 2, 1, 1, 3]
    # A state of 1 that nothing is added to, after as many tokens.
    tokens = 40
    gates = gate.double().detach().expand(1, tokens + 1, 1).clone()
    hidden = torch.zeros_like(gates)
    hidden[:, 0] = 1
    h = mingru_scan(gates, hidden, candidate='linear').flatten()
    assert float(h[tokens] / h[0]) == pytest.approx(math.exp(-tokens / float(tau[1, 2, 1, 3])), rel=1e-4)
    assert len(mixer.in_proj._forward_hooks) == 1


def test_other_backbones_have_no_gates():
    with pytest.raises(InputError, match='Mean has no minGRU gates'):
        gate_memories(Mean(), torch.randn(1, 3, 4, 4))


@pytest.mark.parametrize('turned', [True, False])
def test_images_are_normalised_as_the_model_does(turned):
    model = nn.Module()
    model.data_preprocessor = nn.Module()
    model.data_preprocessor.mean = torch.tensor([1.0, 2.0, 3.0]).view(-1, 1, 1)
    model.data_preprocessor.std = torch.tensor([4.0, 5.0, 6.0]).view(-1, 1, 1)
    model.data_preprocessor.to_rgb = turned
    blue, green, red = 10, 20, 30
    image = torch.tensor([blue, green, red]).view(3, 1, 1)
    expected = [(red - 1) / 4, 18 / 5, (blue - 3) / 6] if turned else [(blue - 1) / 4, 18 / 5, (red - 3) / 6]
    assert normalise(model, image).flatten().tolist() == pytest.approx(expected)


def test_images_in_folders_are_found_and_bad_ones_named(tmp_path):
    import numpy as np
    from PIL import Image

    (tmp_path / 'a' / 'b').mkdir(parents=True)
    for name, value in (('a/b/2.JPG', 200), ('1.png', 100)):
        Image.fromarray(np.full((6, 8, 3), value, np.uint8)).save(tmp_path / name)
    assert [path[len(str(tmp_path)) :] for path in find_images(str(tmp_path))] == ['/1.png', '/a/b/2.JPG']
    first, second = read_inputs(nn.Identity(), str(tmp_path), 5, (4, 4))
    assert first.shape == (1, 3, 4, 4)
    assert first[0, 0, 0, 0].item() == pytest.approx((100 - 123.675) / 58.395)
    assert second.mean() > first.mean()
    (tmp_path / 'a' / 'broken.png').write_text('no image')
    with pytest.raises(InputError, match=r'broken\.png is not an image that can be read'):
        find_images(str(tmp_path))
