"""The metrics of a test in one complete file."""

import os.path as osp

from mmengine.dist import is_main_process
from mmengine.fileio import dump
from mmengine.hooks import LoggerHook

from mmvisiongru._compat import plain_tags
from mmvisiongru.files import new_file
from mmvisiongru.registry import HOOKS


@HOOKS.register_module()
class AtomicLoggerHook(LoggerHook):
    """mmengine's LoggerHook, in which the main process alone writes the metrics of a test, in one step.

    mmengine's processes all write that file; where they share a disk, nodes included, it may be a mixture.
    """

    def after_test_epoch(self, runner, metrics=None) -> None:
        """Log the metrics and write them to a file."""
        tag, text = runner.log_processor.get_log_after_epoch(
            runner, len(runner.test_dataloader), 'test', with_non_scalar=True
        )
        runner.logger.info(text)
        if is_main_process():
            with new_file(osp.join(runner.log_dir, self.json_log_path)) as unfinished:
                dump(plain_tags(self, tag), unfinished, file_format='json')
