"""The largest image: sizes grow, bisection ends at the last that fits, and nothing is measured twice."""

import csv
import math
import multiprocessing

import pytest

from benchmarks import largest_image

PICO = 'mmvisiongru.VisionGRU:pico'


@pytest.fixture
def pretend(monkeypatch):
    """A machine that takes one second a megapixel, refuses sides above `most` and is slow above `slow`."""
    calls = []

    def start(most=math.inf, slow=math.inf):
        def in_process(name, side, args):
            calls.append(side)
            row = dict(model=name, side=side, megapixels=side * side / 1e6)
            if side > min(slow, most):
                return row | dict(outcome='time' if side > slow else 'memory')
            return row | dict(outcome='fits', seconds=1.0, seconds_per_megapixel=1.0, peak_memory_mb=1.0)

        monkeypatch.setattr(largest_image, 'in_process', in_process)
        monkeypatch.setattr(largest_image, 'OVER_SIZES', ['A'])
        return calls

    return start


def run(folder, *options):
    largest_image.main(['--out', str(folder / 'x'), '--device', 'cpu', *options])
    return list(csv.DictReader((folder / 'x.csv').read_text().splitlines()[1:]))


@pytest.mark.parametrize(('most', 'largest'), [(1024, 1024), (1100, 1088), (1439, 1408), (10**6, 8192)])
def test_bisection_ends_at_the_largest_that_fits(pretend, tmp_path, most, largest):
    calls = pretend(most=most)
    rows = run(tmp_path)
    assert max(int(row['side']) for row in rows if row['outcome'] == 'fits') == largest
    assert len(calls) == len(set(calls))
    assert (tmp_path / 'x.png').stat().st_size > 1000


def test_what_takes_too_long_ends_a_model(pretend, tmp_path):
    calls = pretend(slow=1500)
    rows = run(tmp_path)
    assert calls == [512, 736, 1024, 1440, 2048]
    assert [row['outcome'] for row in rows] == ['fits'] * 4 + ['time']


def test_table_that_was_begun_goes_on(pretend, tmp_path):
    calls = pretend(most=1100)
    whole = run(tmp_path)
    lines = (tmp_path / 'x.csv').read_text().splitlines(keepends=True)
    (tmp_path / 'x.csv').write_text(''.join(lines[:4]))
    calls.clear()
    assert run(tmp_path) == whole
    assert calls[0] == 1024
    calls.clear()
    run(tmp_path)
    with pytest.raises(SystemExit, match='2'):
        run(tmp_path, '--memory', '8')
    assert not calls


def test_real_process_fits_and_is_refused(tmp_path, monkeypatch):
    # Imported once for both.
    server = multiprocessing.get_context('forkserver')
    server.set_forkserver_preload(['mmvisiongru', 'mmengine.runner', 'mmpretrain.models'])
    monkeypatch.setattr(largest_image, 'get_context', lambda _: server)
    monkeypatch.setattr(largest_image, 'COMPARED', {'A': PICO})
    args = largest_image.parse_args(['--device', 'cpu', '--memory', '1.5'])
    row = largest_image.in_process('A', 256, args)
    assert row['outcome'] == 'fits'
    assert row['seconds_per_megapixel'] == pytest.approx(row['seconds'] / 0.065536)
    # The image alone has 1.6 GB.
    assert largest_image.in_process('A', 11520, args)['outcome'] == 'memory'
    args.minutes = 1e-4
    assert largest_image.in_process('A', 1024, args)['outcome'] == 'time'
