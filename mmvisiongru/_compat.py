"""Private names of other packages, each with the version it was read in and a fallback.

No other module of mmvisiongru may read a ``_private`` attribute of a foreign package
(``tests/test_layout.py`` checks this), so that an upgrade of a dependency has one file to break. Every name
here works without its private counterpart, more slowly or with less detail.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def set_inference_attributes(model: nn.Module, cfg, pipeline: list, dataset_meta: dict | None) -> None:
    """Leave on a model what ``inference_model`` of mmseg and mmpretrain look for on it.

    mmpretrain 1.3.6 takes a built model by private names only, and otherwise says that it has no inferencer.
    """
    cfg = deepcopy(cfg)
    # mmseg reads the variable of its config files, and edits it.
    if pipeline and not cfg.get('test_pipeline'):
        cfg.test_pipeline = deepcopy(pipeline)
    for step in cfg.get('test_pipeline') or ():
        # mmseg builds the steps in the scope of the moment, which need not be theirs.
        step.setdefault('_scope_', cfg.get('default_scope'))
    model.cfg, model.dataset_meta = cfg, dataset_meta
    model._config, model._dataset_meta = cfg, dataset_meta or {}
    if cfg.model.type == 'ImageClassifier':
        model._metainfo = SimpleNamespace(results=[SimpleNamespace(task='Image Classification')])


def checkpoint_loaders(checkpoint_loader: type) -> dict[str, Callable]:
    """Readers of mmengine 0.10.12 by the beginning of an address. Without the name, callers take its own."""
    return getattr(checkpoint_loader, '_schemes', {})


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks (torch 2.15 has no public question). Without the names none is found."""
    kinds = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
    return any(getattr(module, kind, None) for kind in kinds)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """x W^T + b, or GELU of that, without gradients: (..., C), (D, C) and (D) -> (..., D).

    On a CPU torch.nn.functional.linear goes through MKL, which on some processors leaves half of the vector
    unit idle, and a GELU reads and writes the widest map of a block again. The operator that torch 2.15 has
    for its compiler does both in one pass of oneDNN. Without it, torch.nn.functional computes the same.
    """
    if _takes_onednn(x, weight, bias):
        x = x.contiguous()
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'gelu' if gelu else 'none', [], 'none')
    out = F.linear(x, weight, bias)
    return F.gelu(out) if gelu else out


@cache
def _onednn_dtypes() -> tuple[torch.dtype, ...]:
    """What oneDNN's linear layer computes in on this processor."""
    operators = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and hasattr(operators, '_linear_pointwise')):
        return ()
    bfloat16 = getattr(operators, '_is_mkldnn_bf16_supported', lambda: False)()
    return (torch.float32, torch.bfloat16) if bfloat16 else (torch.float32,)


def _takes_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if x.device.type != 'cpu' or x.dtype not in _onednn_dtypes() or x.numel() == 0:
        return False
    if torch.is_autocast_enabled('cpu') or not torch.backends.mkldnn.enabled:
        return False
    # It reads a strided weight 30 times as slowly, and a strided bias as if it were not strided.
    return all(t is None or (t.is_contiguous() and t.dtype == x.dtype) for t in (weight, bias))


def built_loops(runner) -> dict:
    """Loops that a Runner has built, by 'train', 'val' and 'test'; its public properties would build them.

    Read in mmengine 0.10.12. Without the names none is found.
    """
    loops = {name: getattr(runner, f'_{name}_loop', None) for name in ('train', 'val', 'test')}
    return {name: loop for name, loop in loops.items() if hasattr(loop, 'dataloader')}


def adaptive_pooling_operators() -> list:
    """Operators that a graph may hold for adaptive average pooling of maps.

    Exported graphs of torch 2.15 hold the private one. Without the name, they hold the public one.
    """
    aten, names = torch.ops.aten, ('_adaptive_avg_pool2d', 'adaptive_avg_pool2d')
    return [getattr(aten, name).default for name in names if hasattr(aten, name)]
