"""A Runner in another program: what it leaves behind, and where it must behave as mmengine's does."""

import faulthandler
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mmengine.fileio import FileClient, LocalBackend, register_backend
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader

from mmvisiongru.checkpoint import find_checkpoint
from mmvisiongru.errors import InputError
from tests.harness.small_runs import Call
from tests.harness.toy import ToyMetric, ToyModel, toy_runner

STALL = {'default_hooks.stall': dict(type='mmvisiongru.StallHook', timeout=1800)}


def test_training_that_failed_restores_signals_watch_and_optimizer(tmp_path, monkeypatch):
    watch = []
    monkeypatch.setattr(faulthandler, 'dump_traceback_later', lambda *a, **k: watch.append(True))
    monkeypatch.setattr(faulthandler, 'cancel_dump_traceback_later', lambda: watch.append(False))
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    runner = toy_runner(tmp_path, fault=dict(at=5, what='fail'), **STALL)
    with pytest.raises(RuntimeError, match='a fault of this rank'):
        runner.train()
    assert (runner.iter, watch[0], watch[-1]) == (4, True, False)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert not runner.optim_wrapper.optimizer._optimizer_step_pre_hooks
    # The same of a validation alone.
    assert toy_runner(tmp_path / 'val').val().keys() == {'acc'}
    monkeypatch.setattr(ToyMetric, 'compute_metrics', lambda *args: 1 / 0)
    watch.clear()
    with pytest.raises(ZeroDivisionError):
        toy_runner(tmp_path, **STALL).val()
    assert (watch[0], watch[-1]) == (True, False)


def test_training_in_a_thread(tmp_path):
    """As in Ray Tune, Optuna and gradio; Python lets only the main thread handle signals."""
    with ThreadPoolExecutor() as pool:
        pool.submit(lambda: toy_runner(tmp_path).train()).result()
    assert find_checkpoint(str(tmp_path))[0].path == str(tmp_path / 'iter_18.pth')


class PretrainedModel(ToyModel):
    """With a part that starts from a file."""

    def __init__(self, path):
        super().__init__()
        self.part = BaseModule(init_cfg=dict(type='Pretrained', checkpoint=path))


def test_own_loads_are_guarded_and_no_others(tmp_path, monkeypatch):
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD')
    schemes = dict(CheckpointLoader._schemes)
    trace, path = tmp_path / 'trace', tmp_path / 'crafted.pth'
    torch.save(dict(state_dict=ToyModel().state_dict(), extra=Call(os.mkdir, str(trace))), path)
    toy_runner(tmp_path / 'a', iters=3).train()
    with pytest.raises(InputError, match=r'crafted\.pth asks for .*, which is no data and could run code'):
        toy_runner(tmp_path / 'b', load_from=str(path)).train()
    with pytest.raises(InputError, match=r'crafted\.pth asks for '):
        toy_runner(tmp_path / 'c', load_from=str(path), resume=True).train()
    with pytest.raises(InputError, match=r'crafted\.pth asks for '):
        toy_runner(tmp_path / 'd', model=dict(type=PretrainedModel, path=str(path))).train()
    assert not trace.exists()

    # What the user trusts is the user's.
    assert CheckpointLoader._schemes == schemes
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ
    torch.load(path, weights_only=False)
    assert trace.exists()


class StoreBackend(LocalBackend):
    """A store whose keys look like local paths, or begin with store://."""

    root = None

    def _place(self, key):
        return os.path.join(self.root, str(key).replace('://', '/').lstrip('/'))

    def put(self, obj, filepath):
        super().put(obj, self._place(filepath))

    def remove(self, filepath):
        super().remove(self._place(filepath))

    def isfile(self, filepath):
        return super().isfile(self._place(filepath))

    def join_path(self, filepath, *filepaths):
        return '/'.join([str(filepath), *map(str, filepaths)])


register_backend('store', StoreBackend, prefixes='store', force=True)
FileClient.register_backend('store', StoreBackend, prefixes='store', force=True)


@pytest.mark.parametrize(
    ('out_dir', 'backend_args'), [(None, dict(backend='store')), ('store://bucket', None)]
)
def test_checkpoints_in_another_store(tmp_path, monkeypatch, out_dir, backend_args):
    monkeypatch.setattr(StoreBackend, 'root', str(tmp_path / 'store'))
    monkeypatch.setattr(ToyMetric, 'compute_metrics', lambda *args: dict(acc=1.0))
    results = []
    for runner, hook in (('Runner', 'CheckpointHook'), (None, 'mmvisiongru.AtomicCheckpointHook')):
        settings = dict(type=hook, out_dir=out_dir, backend_args=backend_args)
        more = {f'default_hooks.checkpoint.{k}': v for k, v in settings.items()}
        more |= dict(runner_type=runner) if runner else {}
        toy_runner(tmp_path / 'work', iters=9, **more).train()
        files = sorted(p.relative_to(tmp_path) for p in (tmp_path / 'store').rglob('*.pth'))
        assert not list((tmp_path / 'work').rglob('*.pth'))
        results.append(((tmp_path / 'work/last_checkpoint').read_text(), files))
        shutil.rmtree(tmp_path / 'store')
    assert results[0] == results[1]
    assert [path.name for path in files] == ['best_acc_iter_6.pth', 'iter_6.pth', 'iter_9.pth']
    if out_dir:
        # A store cannot be searched: resuming takes the last one, by a loader that somebody registered.
        CheckpointLoader.register_scheme('store://', lambda path, _: dict(state_dict={path: torch.ones(1)}))
        checkpoint, notes = find_checkpoint(str(tmp_path / 'work'))
        assert (list(checkpoint.state_dict), notes) == (['store://bucket/work/iter_9.pth'], [])
