"""Batches that a model cannot take: of 7 samples, before a batch norm behind a pooling."""

from contextlib import nullcontext

import pytest
from mmengine.dataset import InfiniteSampler
from torch.utils.data import DataLoader, SequentialSampler

from mmvisiongru.errors import InputError
from mmvisiongru.launch.model_checks import check_batch_size


@pytest.mark.parametrize(
    ('size', 'drop_last', 'endless', 'named'),
    [
        (3, False, False, 'drop_last=True'), (3, True, False, None), (3, False, True, None),
        (1, True, True, 'batch_size=2'), (9, True, True, None), (9, True, False, 'batch_size=9'),
    ],
)  # fmt: skip
def test_batches_of_one_and_of_none(size, drop_last, endless, named):
    sampler = (InfiniteSampler if endless else SequentialSampler)(range(7))
    loader = DataLoader(range(7), size, sampler=sampler, drop_last=drop_last)
    with pytest.raises(InputError, match=named) if named else nullcontext():
        check_batch_size(['model.neck.bn'], loader)
