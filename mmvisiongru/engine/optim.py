"""The optimizer in few groups of parameters, and layer-wise decay of the learning rate."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from logging import LogRecord

import torch
from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper, OptimWrapperDict, _ParamScheduler
from mmengine.registry import OPTIMIZERS
from torch import nn
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from mmvisiongru.errors import InputError
from mmvisiongru.registry import OPTIM_WRAPPER_CONSTRUCTORS

# Applied to lr and weight_decay already; without them, groups of the same settings are the same.
SPENT = ('lr_mult', 'decay_mult')
# How a step is computed, and not what: this machine's choice, whatever a checkpoint says.
IMPLEMENTATION = ('fused', 'foreach', 'capturable')
# SGD would start from momentum that nothing wrote if its first step is left out.
FUSED = (torch.optim.Adam, torch.optim.AdamW)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor; parameters of equal settings share a group, where it makes one for each.

    Adam and AdamW become ``fused`` where the parameters are on a device that has it, unless the optimizer's
    config says how they are to be computed.

    Args:
        optim_wrapper_cfg (dict): As mmengine's.
        paramwise_cfg (dict, optional): As mmengine's, and ``layer_decay_rate`` (float): the lr of a parameter
            is multiplied by this for every layer behind its own, up to the heads. ``get_layer_depth`` of the
            backbone counts the layers; the model may be a classifier or a segmentor.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer of a model and its wrapper."""
        if self._can_fuse(model):
            self.optimizer_cfg = dict(self.optimizer_cfg, fused=True)
        return super().__call__(model)

    def _can_fuse(self, model: nn.Module) -> bool:
        kind = self.optimizer_cfg['type']
        if isinstance(kind, str):
            with OPTIMIZERS.switch_scope_and_registry(None) as registry:
                kind = registry.get(kind)
        stated = {*IMPLEMENTATION, 'differentiable'} & set(self.optimizer_cfg)
        if kind not in FUSED or stated:
            return False
        devices = _get_fused_kernels_supported_devices()
        return all(p.is_floating_point() and p.device.type in devices for p in model.parameters())

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs) -> None:
        """As mmengine's, which calls it for each module; of the model itself, join what it made."""
        if prefix:
            return super().add_params(params, module, prefix=prefix, **kwargs)
        with _without_a_line_for_each_parameter():
            super().add_params(params, module, **kwargs)
        params[:] = self._join(params, module)

    def _join(self, singles: list[dict], model: nn.Module) -> list[dict]:
        names = {id(p): name for name, p in model.named_parameters()}
        depth_of = _layer_depth(model) if 'layer_decay_rate' in self.paramwise_cfg else None
        groups, depths = {}, {}
        for single in singles:
            settings = {k: v for k, v in single.items() if k not in ('params', *SPENT)}
            for name, base in (('lr', self.base_lr), ('weight_decay', self.base_wd)):
                if base is not None:
                    settings.setdefault(name, base)
            depth, (parameter,) = None, single['params']
            if depth_of:
                depth, layers = depth_of(names[id(parameter)])
                settings['lr'] *= self.paramwise_cfg['layer_decay_rate'] ** (layers - 1 - depth)
            key = repr(sorted(settings.items()))
            groups.setdefault(key, dict(settings, params=[]))['params'].append(parameter)
            depths.setdefault(key, depth)
        frozen = sum(not p.requires_grad for p in model.parameters())
        print_log(_table(list(groups.values()), list(depths.values()), frozen), logger='current')
        return list(groups.values())


def _layer_depth(model: nn.Module):
    """What gives depth and number of layers for the name of a parameter."""
    backbone = getattr(model, 'backbone', None)
    if not hasattr(backbone, 'get_layer_depth'):
        raise InputError(
            f'paramwise_cfg.layer_decay_rate needs a backbone that counts its layers; '
            f'{type(backbone).__name__} of {type(model).__name__} has no get_layer_depth'
        )
    return lambda name: backbone.get_layer_depth(name, prefix='backbone.')


def _table(groups: list[dict], depths: list[int | None], frozen: int) -> str:
    rows = [('group', 'depth', 'lr', 'decay', 'tensors', 'parameters')]
    for i, (group, depth) in enumerate(zip(groups, depths, strict=True)):
        settings = [f'{group[k]:.4g}' if k in group else '-' for k in ('lr', 'weight_decay')]
        sizes = [len(group['params']), sum(p.numel() for p in group['params'])]
        rows.append((str(i), '-' if depth is None else str(depth), *settings, *(f'{n:,}' for n in sizes)))
    lines = [' '.join(f'{cell:>10}' for cell in row) for row in rows]
    return '\n'.join(['groups of parameters:', *lines, *([f'frozen: {frozen} tensors'] if frozen else [])])


@contextmanager
def _without_a_line_for_each_parameter() -> Iterator[None]:
    """Keep out of the log what mmengine says of single parameters."""

    def keep(record: LogRecord) -> bool:
        text = record.getMessage()
        return not (text.startswith('paramwise_options -- ') or text.endswith('requires_grad=False'))

    logger = MMLogger.get_current_instance()
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def single_wrappers(wrapper: OptimWrapper | OptimWrapperDict) -> list[OptimWrapper]:
    """The wrappers of one optimizer each."""
    return list(wrapper.optim_wrappers.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]


def all_schedulers(schedulers) -> list:
    """The schedulers of a run, of one optimizer or several; none before they are built."""
    if isinstance(schedulers, dict):
        schedulers = chain(*schedulers.values())
    return [s for s in schedulers or () if isinstance(s, _ParamScheduler)]


def is_accumulating(wrapper: OptimWrapper | OptimWrapperDict) -> bool:
    """Whether a gradient waits for further iterations to be added before an optimizer takes its step."""
    return not all(single.should_update() for single in single_wrappers(wrapper))


def accept_state(path: str, optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Prepare the state of an optimizer in a checkpoint; how a step is computed stays this machine's choice.

    Raises:
        InputError: The state has other groups of parameters.
    """
    old, new = saved['param_groups'], optimizer.param_groups
    sizes, wanted = ([len(group['params']) for group in groups] for groups in (old, new))
    if sizes != wanted:
        raise InputError(
            f'the optimizer in {path} has {len(old)} groups of {sum(sizes)} parameters, that of the config '
            f'{len(new)} of {sum(wanted)}; resume with the optim_wrapper of that run, or start anew from its '
            f'weights: --cfg-options load_from={path}'
        )
    for group, own in zip(old, new, strict=True):
        group.update({k: own[k] for k in IMPLEMENTATION if k in own})
