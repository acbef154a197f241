"""The backbone as configs build it: found in every scope, and bad arguments in one line."""

import subprocess
import sys

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mmvisiongru.models.visiongru import VisionGRU
from tests.harness import ROOT
from tests.harness.children import PATIENCE
from tests.harness.visiongru import SMALL


def test_resolves_in_every_scope_without_custom_imports():
    # A process for each, forked from one that has imported what all of them need.
    code = """
import importlib, os, sys
import mmengine.model, mmengine.registry
for library in ('mmengine', 'mmseg', 'mmpretrain'):
    if os.fork() == 0:
        models = importlib.import_module(library + '.registry').MODELS
        assert not any(name.startswith('mmvisiongru') for name in sys.modules)
        model = models.build(dict(type='mmvisiongru.VisionGRU', arch='pico', out_indices=(-1,)))
        print(library, type(model).__module__, type(model).__name__, model.embed_dims[0])
        sys.exit()
    os.wait()
"""
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    found = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    built = 'mmvisiongru.models.visiongru VisionGRU 24'
    assert found == [['mmengine', built], ['mmseg', built], ['mmpretrain', built]], done.stderr


def stages(embed_dims=(8, 16, 32, 64), depths=(1, 1, 1, 1)):
    return dict(arch=dict(embed_dims=list(embed_dims), depths=list(depths)))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='huge'), "arch.*'huge'"),
        (dict(arch=dict(embed_dims=[8, 16])), "arch.*'depths'.*got.*'embed_dims'"),
        (dict(arch=dict(**SMALL, heads=[1, 1, 1, 1])), "arch.*'heads'"),
        (stages(embed_dims=[8, 16, 32]), 'arch.*3 embed_dims.*4 depths'),
        (stages([], []), 'arch.*0'),
        (stages([9, 16, 32, 64]), 'embed_dims.*even.*9'),
        (stages([8, -16, 32, 64]), 'embed_dims.*positive.*-16'),
        (stages(depths=[1, 0, 1, 1]), r'depths.*positive.*\(1, 0, 1, 1\)'),
        (stages(depths=[1, 1, -2, 1]), 'depths.*positive.*-2'),
        (dict(in_channels=0), 'in_channels.*0'),
        (dict(scan_paths=('row', 'diagonal')), "scan_paths.*'diagonal'"),
        (dict(scan_paths=()), r'scan_paths.*\(\)'),
        (dict(scan_paths='row'), "scan_paths.*list.*got 'row'"),
        (dict(dwconv_kernel_size=4), 'dwconv_kernel_size.*4'),
        (dict(dwconv_kernel_size=-3), 'dwconv_kernel_size.*-3'),
        (dict(expand_ratio=0), 'expand_ratio.*0'),
        (dict(mlp_ratio=-1), 'mlp_ratio.*-1'),
        (dict(candidate='tanh'), "candidate.*'tanh'"),
        (dict(pos_embed='sine'), "pos_embed.*'sine'"),
        (dict(drop_path_rate=1.5), r'drop_path_rate.*1\.5'),
        (dict(drop_path_rate=1.0), r'drop_path_rate.*1\.0'),
        (dict(drop_path_rate=-0.1), r'drop_path_rate.*-0\.1'),
        (dict(out_indices=(4,)), r'out_indices.*\(4,\)'),
        (dict(out_indices=(0, -5)), r'out_indices.*\(0, -5\)'),
        (dict(out_indices=()), r'out_indices.*\(\)'),
        (dict(out_indices=4), 'out_indices.*got 4'),
        (dict(frozen_stages=5), 'frozen_stages.*got 5'),
        (dict(frozen_stages=-2), 'frozen_stages.*got -2'),
        (dict(scan_backend='warp'), "scan_backend.*'warp'"),
    ],
    ids=str,
)
def test_bad_argument(options, message):
    with pytest.raises(ValueError, match=message) as info:
        VisionGRU(**{'arch': SMALL, **options})
    assert '\n' not in str(info.value)


def test_misspelt_argument():
    with pytest.raises(TypeError, match='drop_path'):
        VisionGRU(arch=SMALL, drop_path=0.1)


def test_error_comes_through_the_registry():
    with pytest.raises(ValueError, match='huge'):
        MODELS.build(dict(type='mmvisiongru.VisionGRU', arch='huge'))
    with pytest.raises(TypeError, match='drop_path'):
        MODELS.build(dict(type='mmvisiongru.VisionGRU', drop_path=0.1))


@pytest.mark.parametrize('part', ['stem', 'conv1'])
def test_a_replaced_stem_is_taken_as_it_is(part):
    model = VisionGRU(SMALL).eval()
    x = torch.randn(1, 3, 40, 48)
    wanted = model(x)
    if part == 'stem':
        model.stem = nn.Sequential(model.stem)
    else:
        model.stem.conv1 = nn.Sequential(model.stem.conv1)
    for a, b in zip(model(x), wanted, strict=True):
        torch.testing.assert_close(a, b)
