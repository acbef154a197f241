"""The samples that a training skipped."""

from mmengine.hooks import Hook

from mmvisiongru.engine.guarded_dataset import GuardedDataset
from mmvisiongru.registry import HOOKS


@HOOKS.register_module()
class BadSampleHook(Hook):
    """Names the samples that were skipped once more at the end of training."""

    def after_train(self, runner) -> None:
        """Log them."""
        dataset = runner.train_dataloader.dataset
        if isinstance(dataset, GuardedDataset) and (files := dataset.bad_files()):
            runner.logger.warning(f'{len(files)} bad samples were skipped: {", ".join(files)}')
