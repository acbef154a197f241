"""A run killed and resumed ends with the tensors of one that was not."""

import signal
from pathlib import Path

import pytest

from mmvisiongru.checkpoint import load_checkpoint_file
from tests.harness.toy import LAST, differing, finish, run, start, toy_runner

LONG = pytest.mark.long


def scores(path) -> tuple:
    """What the run found best, without its folder."""
    info = load_checkpoint_file(str(path))['message_hub']['runtime_info']
    return info['best_score'], Path(info['best_ckpt']).name


# Each loader with workers takes torch five seconds to end, so most of that is among the long tests.
@pytest.mark.parametrize('by_epoch', [False, True])
@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=LONG), pytest.param(2, marks=LONG)])
def test_killed_run_ends_like_the_uninterrupted_one(tmp_path, by_epoch, workers):
    run(tmp_path / 'whole', by_epoch=by_epoch)
    # 7 and 13 come right after a checkpoint and a validation, 6 and 12 between the two.
    for kill_at in (5, 7, 12, 13, 18):
        run(tmp_path / 'killed', kill_at, by_epoch=by_epoch, workers=workers, resume=True)
    run(tmp_path / 'killed', by_epoch=by_epoch, workers=workers, resume=True)
    whole, killed = tmp_path / 'whole' / LAST[by_epoch], tmp_path / 'killed' / LAST[by_epoch]
    assert differing(whole, killed) == (37, [])
    assert scores(whole) == scores(killed)
    best = scores(whole)[1]
    assert differing(tmp_path / 'whole' / best, tmp_path / 'killed' / best)[1] == []


def test_workers_do_not_change_a_run(tmp_path):
    run(tmp_path / 'a', workers=0, iters=6)
    run(tmp_path / 'b', workers=2, iters=6)
    assert differing(tmp_path / 'a/iter_6.pth', tmp_path / 'b/iter_6.pth')[1] == []


def test_validation_cut_off_is_made_up_for(tmp_path):
    run(tmp_path / 'whole', iters=9)
    fault = dict(at=6, what='fail', during='val')
    with pytest.raises(RuntimeError, match='a fault of this rank'):
        toy_runner(tmp_path / 'killed', iters=9, fault=fault).train()
    assert not list((tmp_path / 'killed').glob('best_*.pth'))
    run(tmp_path / 'killed', iters=9, resume=True)
    assert scores(tmp_path / 'whole/iter_9.pth') == scores(tmp_path / 'killed/iter_9.pth')


def test_kill_9_and_resume(tmp_path):
    code, _ = finish(start(1, tmp_path / 'killed', fault=dict(at=8, what='SIGKILL')))
    assert code == -signal.SIGKILL
    run(tmp_path / 'killed', resume=True)
    run(tmp_path / 'whole')
    assert differing(tmp_path / 'whole/iter_18.pth', tmp_path / 'killed/iter_18.pth') == (37, [])
