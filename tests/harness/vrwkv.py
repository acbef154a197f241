"""What the tests of Vision-RWKV share: values of the original."""

import json

import numpy as np
import torch
from torch import nn

from mmvisiongru.models import VRWKV, VRWKVAdapter
from tests.harness import ROOT

FIXTURE = np.load(ROOT / 'tests/data/official_vrwkv_dim16.npz')
CASES = [
    (model, case)
    for model in ('pre', 'post', 'key', 'adapter')
    for case in range(4)
    if f'{model}/case{case}/input' in FIXTURE.files
]
# What the original calls our arguments, those in an arch first.
ARCH = dict(embed_dims='embed_dims', depth='depth', post_norm='post_norm', key_norm='key_norm')
ARCH.update(layer_scale='init_values', num_heads='deform_num_heads', value_ratio='deform_ratio')
OTHERS = dict(img_size='img_size', patch_size='patch_size', out_indices='out_indices')
OTHERS.update(prior_channels='conv_inplane', points='n_points')
# Of max|ref|.
LIMITS = {torch.float32: 1e-5, torch.float64: 1e-9}


def released_state(name):
    """The weights of a model of the fixture under their released names."""
    prefix = f'{name}/state/'
    keys = [key for key in FIXTURE.files if key.startswith(prefix)]
    return {key.removeprefix(prefix): torch.from_numpy(FIXTURE[key]) for key in keys}


def original(name, dtype, **options):
    """A model of the fixture; loading is strict, so that the names are checked as well."""
    given = json.loads(FIXTURE[f'{name}/config'].tobytes())
    arch, others = (
        {ours: given[theirs] for ours, theirs in names.items() if theirs in given} for names in (ARCH, OTHERS)
    )
    kind = VRWKVAdapter if name == 'adapter' else VRWKV
    parts = dict(backbone=kind(arch, **others, **options))
    if 'num_classes' in given:
        parts['head'] = nn.ModuleDict(dict(fc=nn.Linear(given['embed_dims'], given['num_classes'])))
    model = nn.ModuleDict(parts)
    model.load_state_dict(released_state(name))
    return model.to(dtype).eval()


def results(model, name, case, dtype):
    """Maps, gradient of the input and norms of the gradients, by the names of the fixture.

    ``model`` holds the backbone under that name, as the original does.
    """
    x = torch.from_numpy(FIXTURE[f'{name}/case{case}/input']).to(dtype).requires_grad_()
    maps = model['backbone'](x)
    waves = [torch.arange(m.numel(), dtype=dtype).view(m.shape).sin() for m in maps]
    sum((m * wave).sum() for m, wave in zip(maps, waves, strict=True)).backward()
    found = {f'stage{i + 1}': m for i, m in enumerate(maps)}
    grads = {key: p.grad for key, p in model.named_parameters()}
    names = [key.decode() for key in FIXTURE[f'{name}/param_names']]
    assert set(names) == set(grads)
    norms = [0.0 if grads[key] is None else grads[key].norm().item() for key in names]
    return dict(found, grad_input=x.grad, grad_norms=torch.tensor(norms, dtype=torch.float64))


def assert_original(found, name, case, limit, released=False, each_norm=True):
    """Compare with the fixture, relative to max|ref|; returns how many arrays it holds of what was found.

    ``each_norm`` compares the norm of a gradient with itself, not with the largest of the others.
    """
    folder = f'{name}/case{case}/' + ('released/' if released else '')
    checked = 0
    for key, got in found.items():
        if folder + key not in FIXTURE.files:
            continue
        ref = torch.from_numpy(FIXTURE[folder + key])
        scale = ref.clamp(min=1e-9) if key == 'grad_norms' and each_norm else ref.abs().max()
        worst = ((got.detach().double() - ref).abs() / scale).max().item()
        assert worst <= limit, f'{key}: {worst:.2e} > {limit:.0e}'
        checked += 1
    return checked
