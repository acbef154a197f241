"""The command: sizes, the file it writes, one line for bad input."""

import json

import pytest

from tools.analysis_tools import get_flops

PICO = 'mmvisiongru.VisionGRU:pico'
TTA = 'configs/segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512_tta.py'


def test_sizes_reach_the_file(tmp_path, capsys):
    get_flops.main([PICO, '--shape', '64', '--shape', '64', '128', '--json', str(tmp_path / 'counts.json')])
    square, wide = json.loads((tmp_path / 'counts.json').read_text())['rows']
    assert (square['shape'], wide['shape']) == ([64, 64], [64, 128])
    assert wide['macs'] == 2 * square['macs'] > 0
    out = capsys.readouterr().out
    assert f'{square["parameters"] / 1e6:.2f} M parameters' in out
    # Small models are shown in millions.
    assert 'MMACs' in out


def test_wrapper_for_test_time_augmentation_counts_one_view(capsys):
    get_flops.main([TTA])
    out = ' '.join(capsys.readouterr().out.split())
    assert '60.48 M parameters' in out
    assert '512 x 512' in out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nothing.py'], 'nothing.py does not exist'),
        (['resnet50_8xb32_in1'], 'resnet50_8xb32_in1k'),
        ([PICO, '--shape', '0'], 'positive'),
        ([PICO, '--shape', '1', '2', '3'], 'one or two'),
    ],
)
def test_bad_input_is_one_line(arguments, message, refused):
    assert message in refused(get_flops, *arguments)
