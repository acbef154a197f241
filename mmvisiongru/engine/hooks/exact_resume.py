"""The part of exact resuming that lies in the training loop."""

from bisect import bisect

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop

from mmvisiongru.engine.resume import seed_all
from mmvisiongru.registry import HOOKS


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Seeds each iteration, and validates first if the run was stopped between a checkpoint and validation.

    Needs ``runner_type='mmvisiongru.ReliableRunner'``, whose samples are seeded too.
    """

    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        """Make up for a validation that the checkpoint cannot contain: it is saved before."""
        loop, val_loop = runner.train_loop, runner.val_loop
        if not runner.iter or val_loop is None:
            return
        by_iter = isinstance(loop, IterBasedTrainLoop)
        done = loop.iter if by_iter else loop.epoch
        last = loop.max_iters if by_iter else loop.max_epochs
        # In the middle of an epoch, nothing is due.
        if getattr(loop, 'done', 0):
            return
        interval = loop.dynamic_intervals[bisect(loop.dynamic_milestones, done + 1) - 1]
        if done >= loop.val_begin and (done % interval == 0 or done == last):
            runner.logger.info('validating the checkpoint first, as the run would have done')
            val_loop.run()

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Seed what the model draws."""
        seed_all(runner.seed, 'iteration', get_rank(), runner.iter)
