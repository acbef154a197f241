"""Receptive fields and gate memories, against what follows by hand and through the scripts."""

import csv
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mmvisiongru.models import VisionGRU
from mmvisiongru.ops import mingru_scan
from tools.visualization import gate_memory, receptive_field
from tools.visualization.gate_memory import gate_memories
from tools.visualization.receptive_field import central_side, receptive_fields

PICO = 'mmvisiongru.VisionGRU:pico'


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
    torch.manual_seed(0)
    backbone = VisionGRU(dict(embed_dims=[8, 16], depths=[1, 1]), out_indices=(1,))
    first, second = receptive_fields(backbone, [torch.randn(1, 3, 32, 32)])
    assert [float(field.sum()) for field in (first, second)] == pytest.approx([1, 1])
    # The second stage sees more.
    assert central_side(first, 0.9) < central_side(second, 0.9)


@pytest.mark.parametrize('share', [0.25, 0.5, 0.9])
def test_an_even_field_fills_a_box_of_that_share(share):
    assert central_side(torch.full((101, 101), 1.0), share) == pytest.approx(math.sqrt(share), abs=0.02)


def test_time_constants_are_those_of_the_scan():
    backbone = VisionGRU(dict(embed_dims=[8], depths=[1]), out_indices=(0,))
    mixer = backbone.stages[0].blocks[0].mixer
    seen = []
    mixer.in_proj.register_forward_hook(lambda module, inputs, out: seen.append(out))
    ((paths, tau),) = gate_memories(backbone, torch.randn(1, 3, 12, 20))
    assert (paths, tau.shape) == (('row', 'row_reverse'), (3, 5, 2, 16))
    gates = seen[0].view(3, 5, 2, 2, 16)[1, 2, 1, 1, 3].double().detach().expand(1, 41, 1).contiguous()
    # A state of 1 that nothing is added to, after 40 tokens.
    hidden = torch.zeros_like(gates)
    hidden[:, 0] = 1
    h = mingru_scan(gates, hidden, candidate='linear').flatten()
    assert float(h[40] / h[0]) == pytest.approx(math.exp(-40 / float(tau[1, 2, 1, 3])), rel=1e-4)


def call(tool, tmp_path, capsys, *args) -> tuple[list[dict], str]:
    """The table and the output of a script, which draws a PNG at 200 dots per inch and a PDF."""
    out = tmp_path / 'näw folder' / 'figure'
    tool.main([PICO, '--shape', '64', '96', '--out', str(out), *args])
    with Image.open(out.with_suffix('.png')) as picture:
        assert picture.info['dpi'] == pytest.approx((200, 200), abs=0.1)
    assert out.with_suffix('.pdf').read_bytes().startswith(b'%PDF')
    printed = capsys.readouterr().out
    assert '96 x 64' in printed
    return list(csv.DictReader(out.with_suffix('.csv').read_text(encoding='utf-8').splitlines())), printed


def test_receptive_field(tmp_path, capsys):
    rows, printed = call(receptive_field, tmp_path, capsys, '--number', '1')
    sides = [[float(row[f'side_of_{share}%']) for share in (50, 90, 99)] for row in rows]
    assert len(rows) == 4
    assert all(side == sorted(side) and side[-1] <= 100 for side in sides)
    assert f'map 3: 50% within {sides[3][0]}' in printed


def test_gate_memory(tmp_path, capsys, refused):
    rows, printed = call(gate_memory, tmp_path, capsys, '--cfg-options', 'model.out_indices=[0,2]')
    places = [[int(row[name]) for name in ('stage', 'block', 'height', 'width')] for row in rows]
    assert places == [[0, 0, 16, 24], [1, 0, 8, 12], [2, 0, 4, 6], [2, 1, 4, 6]]
    assert all(float(row['q25']) <= float(row['median']) <= float(row['q75']) for row in rows)
    assert 'stage 2, block 1: tau' in printed
    # A figure may be replaced, a file of somebody else not.
    call(gate_memory, tmp_path, capsys)
    for suffix in ('png', 'pdf', 'csv'):
        (tmp_path / f'mine-{suffix}.{suffix}').write_text('x')
        assert f'.{suffix} exists' in refused(gate_memory, PICO, '--out', tmp_path / f'mine-{suffix}')


def test_histograms_name_paths_and_spread_one_peak_over_the_axis():
    narrow, wide = torch.full((4, 6, 2, 8), 1.5), torch.logspace(-1, 3, 384).view(4, 6, 2, 8)
    narrow[0] = 1.6
    memories = [(('row', 'column_reverse'), tau) for tau in (narrow, wide)]
    rows = gate_memory.summarise(memories, [1, 1])
    assert rows[0][4:] == pytest.approx((1.5, 1.5, 1.525, 0))
    assert rows[1][7] == pytest.approx(((wide[:, :, 0] > 6).sum() + (wide[:, :, 1] > 4).sum()) / 384)
    figure = gate_memory.draw(np.zeros((8, 8, 3), np.uint8), memories, rows)
    first, second = (axes for axes in figure.axes if axes.get_xlabel())
    assert (first.get_xscale(), second.get_xscale(), first.get_xlim()[1] < 3) == ('linear', 'log', True)
    assert [text.get_text().strip() for text in second.texts] == ['row: 6', 'column: 4', 'map: 24']
    legend = next(axes.get_legend() for axes in figure.axes if axes.get_legend())
    assert [text.get_text() for text in legend.get_texts()] == ['row', 'column_reverse']
    assert '1/e' in figure.get_suptitle()


@pytest.mark.parametrize(
    ('tool', 'arguments', 'message'),
    [
        (gate_memory, ['mmpretrain.ConvNeXt:atto'], 'ConvNeXt has no minGRU gates'),
        (receptive_field, [PICO, '--number', '0'], '--number must be at least 1'),
        (receptive_field, ['mmpretrain.VisionTransformer:deit-tiny', '--number', '1'], 'gives no maps'),
        (receptive_field, [PICO, 'nowhere.pth'], 'checkpoint nowhere.pth does not exist'),
        (receptive_field, [PICO, '--img', 'nowhere'], 'image nowhere does not exist'),
    ],
)
def test_bad_input_is_one_line(tool, arguments, message, tmp_path, refused):
    assert message in refused(tool, *arguments, '--out', tmp_path / 'x')
    assert not list(tmp_path.iterdir())
