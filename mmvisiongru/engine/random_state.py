"""Random numbers that depend on where a run is and not on how it got there.

Generators are seeded anew for every sample and every iteration, from the seed of the run and the place in
it. A resumed run then draws what the uninterrupted one drew, whatever was drawn before, in which process, and
with how many workers; no state has to be saved.
"""

import hashlib
import random
from collections.abc import Iterator, Sized
from itertools import islice

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler


def seed_all(*place) -> None:
    """Seed the generators of Python, numpy and torch from numbers that say where a run is."""
    seed = int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=4).digest(), 'little')
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed() formats a stack for each call until CUDA is in use.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized() and not torch.cuda._is_in_bad_fork():
        torch.cuda.manual_seed(seed)


class Draw(int):
    """An index into a data set that knows its place: the rank, the epoch and the number within it."""

    def __new__(cls, index: int, place: tuple[int, int, int]):
        """Attach the place to the index."""
        draw = super().__new__(cls, index)
        draw.place = place
        return draw

    def __reduce__(self):
        return Draw, (int(self), self.place)


class NumberedSampler(Sampler):
    """Turns the indices of a sampler into :class:`Draw`, and can start in the middle of an epoch.

    Args:
        sampler (Sampler): The sampler.
    """

    def __init__(self, sampler):
        self.sampler, self.epoch, self.first = sampler, 0, 0

    def start_at(self, number: int) -> None:
        """Let the next epoch begin with this draw; those before it are not loaded."""
        self.first = number

    def set_epoch(self, epoch: int) -> None:
        """Hand the epoch on."""
        self.epoch = epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Draw]:
        first, self.first = self.first, 0
        for number, index in islice(enumerate(self.sampler), first, None):
            yield Draw(index, (get_rank(), self.epoch, number))

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name):
        if name == 'sampler':
            raise AttributeError(name)
        return getattr(self.sampler, name)


class EndlessNumberedSampler(NumberedSampler):
    """The same for a sampler without end, which mmengine fast-forwards when it resumes."""

    def skip(self, number: int) -> None:
        """As ``InfiniteSampler.skip``."""
        self.start_at(number)


def build_numbered_sampler(sampler: dict, dataset: Sized, seed: int | None) -> NumberedSampler:
    """Build the sampler of a dataloader's config and number its draws."""
    sampler = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
    return EndlessNumberedSampler(sampler) if hasattr(sampler, 'skip') else NumberedSampler(sampler)
