"""Launching without a GPU: who is which process, where they meet, what changes in the config."""

import datetime
import os
import subprocess

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper

from mmvisiongru.errors import InputError
from mmvisiongru.launch import processes
from tests.harness import ROOT

SLURM = dict(
    SLURM_PROCID='5', SLURM_NTASKS='8', SLURM_LOCALID='1', SLURM_JOB_ID='4711012', SLURM_NODELIST='n[3-4]'
)


@pytest.fixture
def started(monkeypatch):
    """A machine without a GPU on which process groups are only noted."""
    calls = []
    monkeypatch.setattr(os, 'environ', {'PATH': os.environ['PATH']})
    monkeypatch.setattr(processes, 'has_gpu', lambda: False)
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda *a, **k: calls.append((a, k)))
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda: 8)
    return calls


def config(**keys) -> Config:
    head = dict(type='FCNHead', norm_cfg=dict(type='SyncBN', requires_grad=True))
    model = dict(backbone=dict(norm_cfg=dict(type='LN')), neck=[dict(head)], auxiliary_head=(dict(head),))
    return Config(dict(model=model, env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=60)), **keys))


def test_slurm_without_gpu(started, monkeypatch, tmp_path):
    scontrol = tmp_path / 'scontrol'
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames n[3-4]" ] && printf "n3\\nn4\\n"\n')
    scontrol.chmod(0o755)
    os.environ.update(SLURM, PATH=f'{tmp_path}:{os.environ["PATH"]}')
    monkeypatch.setenv('PATH', os.environ['PATH'])
    more = dict(sync_bn='torch', optim_wrapper=dict(type=AmpOptimWrapper))
    cfg = config(launcher='slurm', find_unused_parameters=True, **more)
    notes = processes.prepare_launch(cfg)

    names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')
    assert [os.environ[name] for name in names] == ['5', '8', '1', 'n3', str(10000 + 4711012 % 20000)]
    assert started == [(('gloo',), dict(timeout=datetime.timedelta(seconds=60)))]
    wrapper = dict(type='MMDistributedDataParallel', broadcast_buffers=False)
    assert cfg.model_wrapper_cfg == dict(wrapper, find_unused_parameters=True, device_ids=None)
    for head in (cfg.model.neck[0], cfg.model.auxiliary_head[0]):
        assert head.norm_cfg == dict(type='BN', requires_grad=True)
    assert cfg.model.backbone.norm_cfg.type == 'LN'
    assert 'sync_bn' not in cfg
    assert cfg.optim_wrapper.type == 'mmvisiongru.CPUAmpOptimWrapper'
    assert cfg.env_cfg.dist_cfg.backend == 'gloo'
    assert any('SyncBN' in note for note in notes)


def test_given_port_and_wrapper_are_kept(started):
    os.environ.update(SLURM, MASTER_ADDR='head', MASTER_PORT='1234')
    cfg = config(launcher='slurm', model_wrapper_cfg=dict(type='MySeparateDDP', static_graph=True))
    processes.prepare_launch(cfg)
    assert (os.environ['MASTER_ADDR'], os.environ['MASTER_PORT']) == ('head', '1234')
    wrapper = dict(type='MySeparateDDP', static_graph=True, device_ids=None)
    assert wrapper.items() <= dict(cfg.model_wrapper_cfg).items()


def test_with_gpu_all_is_left_to_mmengine(started, monkeypatch):
    monkeypatch.setattr(processes, 'has_gpu', lambda: True)
    os.environ.update(RANK='0', WORLD_SIZE='2', LOCAL_RANK='0')
    cfg = config(launcher='pytorch')
    before = cfg.to_dict()
    assert processes.prepare_launch(cfg) == []
    assert cfg.to_dict() == before
    assert started == []


@pytest.mark.parametrize(
    ('launcher', 'env', 'message'),
    [
        ('slurm', {'RANK': '0'}, r'launcher slurm needs SLURM_PROCID .* tools/slurm_train.sh'),
        ('slurm', {**SLURM, 'PATH': ''}, 'cannot find each other: .*scontrol'),
        ('none', {'WORLD_SIZE': '2'}, r'add --launcher pytorch'),
        ('mpi', {f'OMPI_COMM_WORLD_{n}': '0' for n in ('RANK', 'SIZE', 'LOCAL_RANK')}, 'needs MASTER_ADDR'),
        ('torch', {}, r"launcher must be none, pytorch, slurm, mpi, got 'torch'"),
    ],
)
def test_launcher_that_did_not_start_this_process(started, launcher, env, message):
    os.environ.update(env)
    with pytest.raises(InputError, match=message):
        processes.prepare_launch(config(launcher=launcher))


@pytest.mark.parametrize(
    ('env', 'options'),
    [
        ({}, ['--standalone']),
        ({'NNODES': '1', 'MASTER_ADDR': 'a'}, ['--standalone']),
        ({'PORT': '29501'}, ['--nnodes=1', '--master-addr=127.0.0.1', '--master-port=29501']),
        (
            {'NNODES': '2', 'NODE_RANK': '1', 'MASTER_ADDR': 'n0', 'PORT': '1', 'MASTER_PORT': '2'},
            ['--nnodes=2', '--node-rank=1', '--master-addr=n0', '--master-port=2'],
        ),
        ({'NNODES': '2', 'NODE_RANK': '1', 'MASTER_ADDR': 'n0'}, ['--master-port=29500']),
        ({'NNODES': '2', 'NODE_RANK': '1'}, None),
        ({'NNODES': '2', 'MASTER_ADDR': 'n0'}, None),
    ],
)
def test_where_processes_meet(env, options):
    """What dist_train.sh starts, by a python that prints its arguments."""
    path = dict(PATH=os.environ['PATH'], PYTHON='echo')
    command = [str(ROOT / 'tools/dist_train.sh'), 'a b.py', '3', '--amp']
    done = subprocess.run(command, env=path | env, capture_output=True, text=True)
    if options is None:
        assert done.returncode == 2
        assert 'NODE_RANK and MASTER_ADDR' in done.stderr
        return
    command = done.stdout.split()
    assert set(options) <= set(command)
    assert command[0].endswith('tools/misc/torchrun.py')
    assert command[1] == '--nproc-per-node=3'
    assert done.stdout.endswith('tools/train.py a b.py --launcher pytorch --amp\n')
