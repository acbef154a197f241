"""The command: sizes, the file it writes, one line for bad input."""

import json

import pytest

from tools.analysis_tools import get_flops

PICO = 'mmvisiongru.VisionGRU:pico'
TTA = 'configs/segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512_tta.py'


def test_sizes_reach_the_file(tmp_path, capsys):
    get_flops.main([PICO, '--shape', '64', '--shape', '64', '128', '--json', str(tmp_path / 'counts.json')])
    found = json.loads((tmp_path / 'counts.json').read_text())
    square, wide = found['rows']
    assert found['convention'] == 'multiply-accumulates'
    assert (square['shape'], wide['shape']) == ([64, 64], [64, 128])
    assert wide['macs'] == 2 * square['macs'] > 0
    out = capsys.readouterr().out
    assert f'{square["parameters"] / 1e6:.2f} M parameters' in out
    # Small models are shown in millions.
    assert 'MMACs' in out


def test_images_have_the_channels_of_the_model(tmp_path):
    macs = []
    for channels in (1, 3):
        file = tmp_path / f'{channels}.json'
        get_flops.main(
            [PICO, '--shape', '64', '--json', str(file), '--cfg-options', f'model.in_channels={channels}']
        )
        macs.append(json.loads(file.read_text())['rows'][0]['macs'])
    # The first convolution: 3 x 3, 12 output channels, 32 x 32 pixels.
    assert macs[1] - macs[0] == 2 * 9 * 12 * 32 * 32


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
        (['mmvisiongru.VisionGRU:tinny'], 'tinny'),
        ([PICO, '--cfg-options', 'model.scan_pathes=row'], 'scan_pathes'),
        ([PICO, '--shape', '0'], 'positive'),
        ([PICO, '--shape', '1', '2', '3'], 'one or two'),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        get_flops.main(arguments)
    assert caught.value.code == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error:')]
    assert len(error) == 1
    assert message in error[0]
