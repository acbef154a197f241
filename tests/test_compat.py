"""What mmvisiongru/_compat.py does when private names of other packages are gone."""

from functools import cache
from types import SimpleNamespace

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
        return Lacking(found) if name in ('ops', 'mkldnn', 'aten') else found


def test_linear_layers_are_those_of_torch(monkeypatch):
    x, model = torch.randn(5, 7), nn.Sequential(nn.Linear(7, 3), nn.GELU(), nn.Linear(3, 2, bias=False))
    monkeypatch.setattr(_compat, 'torch', Lacking(torch))
    # Without what it found in the whole torch.
    monkeypatch.setattr(_compat, '_onednn_dtypes', cache(_compat._onednn_dtypes.__wrapped__))
    with torch.no_grad():
        assert torch.equal(model(x), optimize_for_inference(model)(x))


def test_graphs_hold_the_public_pooling(monkeypatch):
    monkeypatch.setattr(_compat, 'torch', Lacking(torch))
    assert _compat.adaptive_pooling_operators() == [torch.ops.aten.adaptive_avg_pool2d.default]


def test_nothing_is_found_on_objects():
    assert _compat.checkpoint_loaders(object) == _compat.built_loops(SimpleNamespace()) == {}
    assert not _compat.has_hooks(SimpleNamespace())
