"""The metrics of a test, when several processes share a disk."""

import json

from mmvisiongru.engine.hooks import AtomicLoggerHook, logger
from tests.harness.toy import toy_config, toy_runner


def test_one_process_writes_the_metrics(tmp_path, monkeypatch):
    cfg = toy_config(tmp_path)
    loop = dict(test_cfg={}, test_dataloader=cfg.val_dataloader, test_evaluator=cfg.val_evaluator)
    runner = toy_runner(tmp_path, **loop)
    runner.test()
    file = tmp_path / runner.timestamp / f'{runner.timestamp}.json'
    assert 0 <= json.loads(file.read_text())['acc'] <= 1
    (hook,) = [h for h in runner.hooks if isinstance(h, AtomicLoggerHook)]
    file.write_text('of the first process')
    monkeypatch.setattr(logger, 'is_main_process', lambda: False)
    hook.after_test_epoch(runner, dict(acc=0.5))
    assert file.read_text() == 'of the first process'
