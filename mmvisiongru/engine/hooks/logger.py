"""Logs of a validation in few lines, and the metrics of a test from one process."""

from mmengine.dist import master_only
from mmengine.hooks import LoggerHook

from mmvisiongru.registry import HOOKS


@HOOKS.register_module()
class AtomicLoggerHook(LoggerHook):
    """mmengine's LoggerHook; one process writes a test's metrics: several would mix them on a shared disk."""

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Log about ten lines of a validation at most, however often training is logged."""
        if self.every_n_inner_iters(batch_idx, max(self.interval, len(runner.val_dataloader) // 10)):
            runner.logger.info(runner.log_processor.get_log_after_iter(runner, batch_idx, 'val')[1])

    after_test_epoch = master_only(LoggerHook.after_test_epoch)
