"""The metrics of a test, when several processes share a disk."""

import json
import os

import pytest
from mmengine.hooks import LoggerHook

from mmvisiongru.engine.hooks import AtomicLoggerHook, logger
from mmvisiongru.errors import InputError
from mmvisiongru.files import UNFINISHED
from tests.harness.toy import toy_config, toy_runner


def after_test(folder):
    """A runner that has tested the toy model, and the file of its metrics."""
    cfg = toy_config(folder)
    runner = toy_runner(
        folder, test_cfg={}, test_dataloader=cfg.val_dataloader, test_evaluator=cfg.val_evaluator
    )
    runner.test()
    return runner, folder / runner.timestamp / f'{runner.timestamp}.json'


def test_one_process_writes_the_metrics(tmp_path, monkeypatch):
    runner, file = after_test(tmp_path)
    written = json.loads(file.read_text())
    assert 0 <= written['acc'] <= 1
    (hook,) = [h for h in runner.hooks if isinstance(h, LoggerHook)]
    file.write_text('of the first process')
    monkeypatch.setattr(logger, 'is_main_process', lambda: False)
    hook.after_test_epoch(runner, dict(acc=0.5))
    assert file.read_text() == 'of the first process'


def test_metrics_are_there_whole_or_not_at_all(tmp_path):
    runner, file = after_test(tmp_path)
    before = file.read_bytes()
    (hook,) = [h for h in runner.hooks if isinstance(h, AtomicLoggerHook)]
    (file.parent / f'.{file.name}.{os.getpid()}{UNFINISHED}').symlink_to('/dev/full')
    with pytest.raises(InputError, match='No space left on device'):
        hook.after_test_epoch(runner, dict(acc=0.5))
    assert file.read_bytes() == before
