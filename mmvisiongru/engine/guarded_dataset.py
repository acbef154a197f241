"""A data set that names what is wrong with a sample, and skips a few bad ones in training."""

import re

import torch
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from mmvisiongru.engine.resume import Draw, seed_all
from mmvisiongru.errors import InputError, in_one_line
from mmvisiongru.registry import HOOKS
from mmvisiongru.sample_checks import check_files, check_labels, reads_elsewhere


class GuardedDataset(Dataset):
    """Loads the samples of a data set, each with its own random state, and checks them.

    Labels are checked at each load, as augmentation may spoil them, files at the first. A process may replace
    ``max_bad_samples`` bad ones by the next good one; None is for an evaluation, which skips none. Attributes
    are those of the data set: others read and set them, such as a new ``pipeline`` in mid-run.
    """

    OWN = frozenset(('dataset', 'run_seed', 'max_bad_samples', 'class_count', 'bad', 'good'))

    def __init__(self, dataset: dict, seed: int, max_bad_samples: int | None = None):
        self.dataset = DATASETS.build(dataset)
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()
        self.run_seed, self.max_bad_samples = seed, max_bad_samples
        # mmengine copies the metainfo each time, with the colours of all classes.
        self.class_count = len((getattr(self.dataset, 'metainfo', None) or {}).get('classes') or ())
        # One flag per sample in memory that the workers share: skipped; loaded before.
        self.bad, self.good = torch.zeros(2, len(self.dataset), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name):
        # With __getitems__, torch's fetcher would take a batch that nothing has checked.
        if name in ('dataset', '__getitems__'):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name, value):
        if name in self.OWN:
            super().__setattr__(name, value)
        else:
            setattr(self.dataset, name, value)

    def __getitem__(self, index: int):
        if isinstance(index, Draw):
            seed_all(self.run_seed, 'sample', *index.position)
        index = int(index)
        while True:
            try:
                return self.load(index)
            # A broken file fails in any way, in any transform.
            except Exception as error:
                self._skip(index, error)
            index = (index + 1) % len(self)

    def _skip(self, index: int, error: Exception) -> None:
        fault = self.describe(index, error)
        if self.max_bad_samples is None:
            raise InputError(fault) from error
        if not self.bad[index]:
            self.bad[index] = 1
            # Every rank shows messages of this level.
            MMLogger.get_current_instance().error(f'bad sample skipped: {fault}')
        if (count := int(self.bad.sum())) > self.max_bad_samples:
            line = f'{count} bad samples, more than max_bad_samples={self.max_bad_samples}'
            raise InputError(f'{line}: {", ".join(self.bad_files())}; the last: {fault}') from error
        if count == len(self):
            raise InputError(f'all {count} samples are bad; the last: {fault}') from error

    def load(self, index: int):
        """Load a sample; ValueError if the pipeline accepts what it should not."""
        info = self._info(index)
        if not self.good[index] and not reads_elsewhere(self.dataset):
            inner = getattr(self.dataset, 'dataset', self.dataset)
            steps = repr(getattr(inner, 'pipeline', ''))
            check_files(info, not re.search("ignore_orientation|'unchanged'|turbojpeg", steps))
        try:
            sample = self.dataset[index]
        except FileNotFoundError as error:
            if not error.filename:
                raise
            raise ValueError(f'{error.filename} does not exist') from error
        check_labels(sample, self.dataset, self.class_count, info, self.max_bad_samples is None)
        self.good[index] = 1
        return sample

    def _info(self, index: int) -> dict:
        return self.dataset.get_data_info(index) if hasattr(self.dataset, 'get_data_info') else {}

    def _files(self, index: int) -> str:
        paths = filter(None, map(self._info(index).get, ('img_path', 'seg_map_path')))
        return ' with '.join(map(str, paths)) or 'no file known'

    def describe(self, index: int, error: Exception) -> str:
        """One line that names the files of a sample and what is wrong with it."""
        return f'sample {index}, {self._files(index)}: {in_one_line(error)}'

    def bad_files(self) -> list[str]:
        """The files of the samples that were skipped."""
        return [self._files(int(i)) for i in self.bad.nonzero()]


@HOOKS.register_module()
class BadSampleHook(Hook):
    """Names the samples that were skipped once more at the end of training."""

    def after_train(self, runner) -> None:
        dataset = runner.train_dataloader.dataset
        if isinstance(dataset, GuardedDataset) and (files := dataset.bad_files()):
            runner.logger.warning(f'{len(files)} bad samples were skipped: {", ".join(files)}')
