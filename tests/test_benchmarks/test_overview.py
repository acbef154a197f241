"""overview.py and linear_share.py: ratios are those of the medians, and two checkouts take turns."""

import re

import pytest

from benchmarks import linear_share, overview
from tests.harness import ROOT

MODELS = [name + form for name in overview.BACKBONES for form in ('', overview.OPTIMIZED)]


class Pretended:
    """A checkout whose runs take ``speed`` times the length of the model's name; the first takes longer."""

    order = []

    def __init__(self, side, speed, names):
        self.side, self.speed, self.names, self.runs = side, speed, names, 0

    def call(self, method, *args):
        if method == 'prepare':
            return self.names
        self.order.append((self.side, *args))
        self.runs += 1
        return self.speed * len(args[0]) * (100 if self.runs <= len(self.names) else 1)


def test_two_checkouts_take_turns_and_ratios_are_right():
    plain = [*overview.BACKBONES]
    sides = {'this': Pretended('this', 1e-3, MODELS), 'other': Pretended('other', 2e-3, plain)}
    found = overview.compare(sides, '64', repeats=2)
    assert {len(seconds) for seconds in found.values()} == {2}
    assert [side for side, name in Pretended.order if name == 'Swin-T'] == ['other', 'this'] * 3
    rows = {(row[1], row[2]): row[3:] for row in overview.rows_of('64', found, {})}
    assert rows['VisionGRU-tiny', 'this'] == [f'{14 / 6:.2f}', '0.50', '14.0']
    assert rows['VisionGRU-tiny', 'other'] == [f'{14 / 6:.2f}', '', '28.0']
    # The other version has no optimized models.
    name = 'VisionGRU-tiny, optimized'
    assert rows[name, 'this'] == [f'{25 / 17:.2f}', f'{25 / 28:.2f}', '25.0']


def test_every_size_has_all_linear_layers(monkeypatch):
    counts, run = [], linear_share.run_layers
    monkeypatch.setattr(linear_share, 'run_layers', lambda calls: counts.append(len(calls)) or run(calls))
    linear_share.main(['mmvisiongru.VisionGRU:pico', '--sizes', '32', '64', '--device', 'cpu'])
    assert {*counts} == {25}


@pytest.mark.long
def test_processes_of_two_checkouts(capfd):
    overview.main(['--sizes', '64', '--no-train', '--repeats', '1', '--threads', '1', '--against', str(ROOT)])
    lines = capfd.readouterr().out.splitlines()
    rows = [line for line in lines if re.match(r' +64 ', line)]
    assert len(rows) == 2 * len(MODELS)
