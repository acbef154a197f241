"""Gradients are stored as their parameters are; DistributedDataParallel copies and warns otherwise."""

import warnings

import pytest
import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mmvisiongru.models import VisionGRU

ARCH = dict(embed_dims=[8, 16], depths=[1, 1])


def build(**options):
    torch.manual_seed(0)
    return VisionGRU(ARCH, out_indices=(0, 1), **options).train()


def backward(model, **cast):
    with torch.autocast('cpu', torch.bfloat16, **cast):
        outs = model(torch.randn(2, model.stem.conv1.in_channels, 64, 64))
    sum(out.float().square().sum() for out in outs).backward()


@pytest.mark.parametrize(
    'options',
    [{}, dict(dwconv_kernel_size=5), dict(dwconv_kernel_size=1), dict(in_channels=1), dict(with_cp=True)],
    ids=str,
)
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('amp', [False, True])
def test_gradients_have_the_strides_of_their_parameters(options, memory_format, amp):
    model = build(**options).to(memory_format=memory_format)
    backward(model, enabled=amp)
    for name, param in model.named_parameters():
        assert param.grad.stride() == param.stride(), name


def test_distributed_training_does_not_warn(tmp_path):
    dist.init_process_group('gloo', store=dist.FileStore(str(tmp_path / 'store'), 1), rank=0, world_size=1)
    # Not once per process: an earlier test must not hide a warning.
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            outs = DistributedDataParallel(build())(torch.randn(2, 3, 32, 32))
            sum(out.square().sum() for out in outs).backward()
    finally:
        torch.set_warn_always(False)
        dist.destroy_process_group()
    assert [str(w.message) for w in caught if 'strides' in str(w.message)] == []
