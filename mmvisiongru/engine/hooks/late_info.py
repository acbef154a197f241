"""Losses and gradient norms for the log, read when it is written and not in every iteration."""

from contextlib import ExitStack
from functools import partial

from mmengine.hooks import RuntimeInfoHook

from mmvisiongru.engine.accuracy import counting_accuracy
from mmvisiongru.engine.optim import single_wrappers
from mmvisiongru.engine.scalars import update_late
from mmvisiongru.registry import HOOKS


@HOOKS.register_module()
class LateInfoHook(RuntimeInfoHook):
    """mmengine's RuntimeInfoHook without its waits for the device, one for each value of an iteration.

    Takes its place as ``default_hooks.runtime_info``. The log and checkpoints hold the same. While it trains,
    mmseg's heads count their accuracy without a wait, too.
    """

    def __init__(self):
        self.taken = ExitStack()

    def before_train(self, runner) -> None:
        """Take over what mmengine and mmseg would read at once."""
        super().before_train(runner)
        self.taken.enter_context(counting_accuracy())
        for wrapper in single_wrappers(runner.optim_wrapper):
            if wrapper.clip_grad_kwargs:
                self.taken.callback(setattr, wrapper, 'clip_func', wrapper.clip_func)
                wrapper.clip_func = partial(_clip, wrapper, wrapper.clip_func)

    def give_back(self, runner) -> None:
        """Give it back."""
        self.taken.close()

    def after_train(self, runner) -> None:
        """Likewise."""
        super().after_train(runner)
        self.give_back(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Keep what the model gave out."""
        for key, value in (outputs or {}).items():
            update_late(runner.message_hub, f'train/{key}', value)


def _clip(wrapper, function, *args, **kwargs) -> None:
    """Clip; gives nothing, so that mmengine has nothing to read."""
    norm = function(*args, **kwargs)
    if norm is not None:
        update_late(wrapper.message_hub, f'train/{wrapper.grad_name}', norm)
