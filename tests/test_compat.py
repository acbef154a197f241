"""What mmvisiongru/_compat.py does when private names of other packages are gone."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import nn

from mmvisiongru import _compat, optimize_for_inference


class Lacking:
    """Another object without its private names, at any depth."""

    def __init__(self, of):
        self.__of = of

    def __getattr__(self, name):
        if name.startswith('_'):
            raise AttributeError(name)
        found = getattr(self.__of, name)
        return Lacking(found) if name in ('ops', 'mkldnn') else found


def linear():
    x, model = torch.randn(5, 7), nn.Sequential(nn.Linear(7, 3), nn.GELU(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        return model(x).tolist(), optimize_for_inference(model)(x).tolist()


def set_inference_attributes():
    # Only sets names, which does no harm where nobody looks for them.
    model, cfg = nn.Identity(), SimpleNamespace(model=SimpleNamespace(type='A'), get=lambda *_: None)
    _compat.set_inference_attributes(model, cfg, [], dict(classes=('a',)))
    return model.dataset_meta, dict(classes=('a',))


def adaptive_pooling_operators():
    class Aten:
        adaptive_avg_pool2d = torch.ops.aten.adaptive_avg_pool2d

    with mock.patch.object(_compat, 'torch', SimpleNamespace(ops=SimpleNamespace(aten=Aten))):
        return _compat.adaptive_pooling_operators(), [torch.ops.aten.adaptive_avg_pool2d.default]


# What each function gives where the names are missing, and what it must give.
FALLBACKS = {
    'linear': linear,
    'set_inference_attributes': set_inference_attributes,
    'checkpoint_loaders': lambda: (_compat.checkpoint_loaders(object), {}),
    'has_hooks': lambda: (_compat.has_hooks(SimpleNamespace()), False),
    'adaptive_pooling_operators': adaptive_pooling_operators,
    'built_loops': lambda: (_compat.built_loops(SimpleNamespace()), {}),
}


@pytest.fixture
def fake_torch(monkeypatch):
    _compat._onednn_dtypes.cache_clear()
    monkeypatch.setattr(_compat, 'torch', Lacking(torch))
    yield
    _compat._onednn_dtypes.cache_clear()


@pytest.mark.parametrize('name', FALLBACKS)
def test_fallback(fake_torch, name):
    got, expected = FALLBACKS[name]()
    assert got == expected
