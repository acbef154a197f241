"""The pictures of receptive fields and gate memories, through the scripts."""

import csv

import pytest
import torch
from PIL import Image

from tools.visualization import gate_memory, receptive_field

PICO = 'mmvisiongru.VisionGRU:pico'


def table(path):
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def test_receptive_field(tmp_path, capsys):
    receptive_field.main(
        [PICO, '--number', '1', '--shape', '64', '64', '--out', str(tmp_path / 'new' / 'erf')]
    )
    rows = table(tmp_path / 'new' / 'erf.csv')
    sides = [[float(row[f'side_of_{share}%']) for share in (50, 90, 99)] for row in rows]
    assert len(rows) == 4
    assert all(side == sorted(side) and side[-1] <= 100 for side in sides)
    assert Image.open(tmp_path / 'new' / 'erf.png').width > 800
    assert f'map 3: 50% within {sides[3][0]}' in capsys.readouterr().out


def test_quartiles_of_a_large_map_are_of_all_channels():
    tau = torch.arange(1, 289.0).view(1, 1, 2, 144).expand(512, 512, 2, 144)
    (row,) = gate_memory.summarise([tau], [1])
    assert row['median'] == pytest.approx(144.5, abs=1)
    assert row['q25'] == pytest.approx(72.75, abs=1)


def test_gate_memory(tmp_path, capsys):
    gate_memory.main([PICO, '--shape', '64', '96', '--out', str(tmp_path / 'memory')])
    rows = table(tmp_path / 'memory.csv')
    assert [(row['stage'], row['block'], row['height'], row['width']) for row in rows] == [
        ('0', '0', '16', '24'),
        ('1', '0', '8', '12'),
        ('2', '0', '4', '6'),
        ('2', '1', '4', '6'),
        ('3', '0', '2', '3'),
    ]
    assert all(float(row['q25']) <= float(row['median']) <= float(row['q75']) for row in rows)
    assert Image.open(tmp_path / 'memory.png').width > 800
    assert 'stage 3, block 0: tau' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('tool', 'arguments', 'message'),
    [
        (gate_memory, ['mmpretrain.ConvNeXt:atto'], 'ConvNeXt has no minGRU gates'),
        (receptive_field, [PICO, '--number', '0'], '--number must be at least 1'),
        (receptive_field, [PICO, 'nowhere.pth'], 'checkpoint nowhere.pth does not exist'),
        (receptive_field, [PICO, '--img', 'nowhere'], 'image nowhere does not exist'),
    ],
)
def test_bad_input_is_one_line(tool, arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        tool.main([*arguments, '--out', str(tmp_path / 'x')])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
