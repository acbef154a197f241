"""A limit on the samples that are skipped."""

from mmengine.hooks import Hook

from mmvisiongru.engine.guarded_dataset import GuardedDataset
from mmvisiongru.errors import InputError
from mmvisiongru.registry import HOOKS


@HOOKS.register_module()
class BadSampleHook(Hook):
    """Ends the run when a process skipped more than ``max_bad_samples`` samples; names them at the end."""

    def before_train(self, runner) -> None:
        """Find the flags of the data set, in memory that its workers write."""
        dataset = runner.train_dataloader.dataset
        # Read in every iteration: as a tensor they would cost several times more.
        self.flags = dataset.bad.numpy() if isinstance(dataset, GuardedDataset) else None

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Count."""
        if self.flags is not None and self.flags.any():
            dataset = runner.train_dataloader.dataset
            files = dataset.bad_files()
            if len(files) > dataset.max_bad_samples:
                raise InputError(
                    f'{len(files)} bad samples, more than max_bad_samples={dataset.max_bad_samples}: '
                    f'{", ".join(files)}; the log says what is wrong with each'
                )

    def after_train(self, runner) -> None:
        """Name them once more."""
        if self.flags is not None and self.flags.any():
            files = runner.train_dataloader.dataset.bad_files()
            runner.logger.warning(f'{len(files)} bad samples were skipped: {", ".join(files)}')
