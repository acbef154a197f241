"""The metrics of a test, in one whole file."""

import os.path as osp

from mmengine.dist import is_main_process
from mmengine.fileio import dump
from mmengine.hooks import LoggerHook

from mmvisiongru.files import new_file
from mmvisiongru.registry import HOOKS


@HOOKS.register_module()
class AtomicLoggerHook(LoggerHook):
    """mmengine's LoggerHook; one process writes the metrics of a test, where every process wrote that file.

    They write to the same one wherever they share a disk, nodes included, and may leave a mixture.
    """

    def after_test_epoch(self, runner, metrics=None) -> None:
        """As mmengine's, but for who writes."""
        tag, text = runner.log_processor.get_log_after_epoch(
            runner, len(runner.test_dataloader), 'test', with_non_scalar=True
        )
        runner.logger.info(text)
        if is_main_process():
            with new_file(osp.join(runner.log_dir, self.json_log_path)) as unfinished:
                dump(self._process_tags(tag), unfinished, file_format='json')
