"""``compile`` of a config: the same run, in whole graphs, with one process and several."""

import re
from uuid import uuid4

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from torch import nn
from torch._dynamo.utils import counters

from mmvisiongru.engine.compiled import compile_parts
from tests.harness.children import torchrun
from tests.harness.small_runs import SEGMENTATION, TOOLS, make_scenes, write_config
from tests.harness.toy import finish, python

# The compiler behind dynamo takes minutes on a CPU; what it is given is what this is about.
COMPILE = dict(backend='aot_eager', fullgraph=True)
SMALL = """
model['backbone'].update(arch=dict(embed_dims=[8, 16], depths=[1, 1]), out_indices=(0, 1))
model['decode_head'].update(in_channels=16, in_index=1, dropout_ratio=0.0)
model['decode_head']['norm_cfg']['type'] = 'BN'
train_cfg.update(max_iters=3, val_interval=3)
"""


@pytest.fixture(autouse=True)
def _no_graphs():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def train(folder, **settings):
    cfg = Config.fromfile(write_config(folder / 'config.py', SEGMENTATION, folder / 'data', SMALL))
    cfg.merge_from_dict(dict(settings, work_dir=str(folder), experiment_name=uuid4().hex))
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.persistent_workers = False
    runner = RUNNERS.build(cfg)
    runner.train()
    return runner


@pytest.mark.parametrize(
    'wrapper', [{}, dict(type='mmvisiongru.CPUAmpOptimWrapper', loss_scale=1.0)], ids=['float32', 'bfloat16']
)
def test_a_compiled_run_is_the_same_run(tmp_path, wrapper):
    make_scenes(tmp_path / 'data')
    eager = train(tmp_path, optim_wrapper=wrapper)
    assert not counters['stats']
    compiled = train(tmp_path, optim_wrapper=wrapper, compile=COMPILE)
    # Backbone and head, for training; validation is not compiled.
    assert counters['stats']['unique_graphs'] == 2
    assert not counters['graph_break']
    tolerance = dict(rtol=1e-2, atol=1e-3) if wrapper else dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled.model.state_dict(), eager.model.state_dict(), **tolerance)
    # Otherwise a copy of the model would call the parts of this one.
    assert not any('forward' in vars(module) for module in compiled.model.modules())


def test_a_replaced_forward_survives_and_a_part_of_two_names_is_compiled_once():
    head = nn.Linear(2, 2)
    model = nn.ModuleDict(dict(heads=nn.ModuleList([head, head]), neck=nn.Linear(2, 2)))
    model['neck'].forward = replaced = lambda x: 2 * x
    parts = compile_parts(model, COMPILE)
    assert list(parts) == ['heads.0', 'neck']
    assert [eager for _, eager in parts.values()] == [nn.Linear.forward.__get__(head), replaced]


@pytest.mark.long
def test_two_processes(tmp_path):
    make_scenes(tmp_path / 'data')
    config = write_config(tmp_path / 'config.py', SEGMENTATION, tmp_path / 'data', SMALL)
    losses = []
    for options in ([], ['compile.backend=aot_eager', 'compile.fullgraph=True']):
        options += ['optim_wrapper.constructor=mmvisiongru.GroupedOptimWrapperConstructor']
        work_dir = tmp_path / f'work{len(losses)}'
        code, log = finish(python(
            *torchrun(2), TOOLS / 'train.py', config, '--launcher', 'pytorch', '--no-pin-memory',
            '--work-dir', work_dir, '--cfg-options', *options,
        ))  # fmt: skip
        assert code == 0, log
        assert ('compiled: backbone, decode_head' in log) == bool(losses)
        losses.append([float(loss) for loss in re.findall(r'Iter\(train\).* loss: ([\d.]+)', log)])
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)
