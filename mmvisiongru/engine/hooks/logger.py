"""Logs of a validation in few lines, and the metrics of a test in one complete file."""

import os.path as osp

from mmengine.dist import is_main_process
from mmengine.fileio import dump
from mmengine.hooks import LoggerHook

from mmvisiongru._compat import plain_tags
from mmvisiongru.files import new_file
from mmvisiongru.registry import HOOKS

# At most about this many lines of a validation.
VALIDATION_LINES = 10


@HOOKS.register_module()
class AtomicLoggerHook(LoggerHook):
    """mmengine's LoggerHook, in which the main process alone writes the metrics of a test, in one step.

    mmengine's processes all write that file; where they share a disk, nodes included, it may be a mixture.
    """

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Log about ten lines of a validation at most, however often training is logged."""
        interval = max(self.interval, len(runner.val_dataloader) // VALIDATION_LINES)
        if self.every_n_inner_iters(batch_idx, interval):
            runner.logger.info(runner.log_processor.get_log_after_iter(runner, batch_idx, 'val')[1])

    def after_test_epoch(self, runner, metrics=None) -> None:
        """Log the metrics and write them to a file."""
        tag, text = runner.log_processor.get_log_after_epoch(
            runner, len(runner.test_dataloader), 'test', with_non_scalar=True
        )
        runner.logger.info(text)
        if is_main_process():
            with new_file(osp.join(runner.log_dir, self.json_log_path)) as unfinished:
                dump(plain_tags(self, tag), unfinished, file_format='json')
