"""The optimizer in few groups of parameters, layer-wise decay of its lr, and mixed precision on a CPU."""

import logging
from itertools import chain

import torch
from mmengine.logging import MMLogger
from mmengine.optim import AmpOptimWrapper, DefaultOptimWrapperConstructor, OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIMIZERS
from torch import nn

from mmvisiongru.errors import InputError
from mmvisiongru.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS

# How a step is computed, not what: this machine decides, whatever a checkpoint says.
IMPLEMENTATION = ('fused', 'foreach', 'capturable')
# The optimizers of the recipes, and devices on which every torch from 2.4 on fuses their steps.
FUSED, FUSED_DEVICES = (torch.optim.Adam, torch.optim.AdamW), ('cpu', 'cuda')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor; parameters of equal settings share a group, where it makes one for each.

    Adam and AdamW become ``fused`` where the parameters are on a device that has it, unless the config of the
    optimizer says how to compute a step. With ``paramwise_cfg.layer_decay_rate``, the lr of a parameter is
    multiplied by that for every layer between its own and the heads of a classifier or segmentor, as counted
    by ``get_layer_depth`` of the backbone.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        if self._can_fuse(model):
            self.optimizer_cfg = dict(self.optimizer_cfg, fused=True)
        return super().__call__(model)

    def _can_fuse(self, model: nn.Module) -> bool:
        kind = self.optimizer_cfg['type']
        if isinstance(kind, str):
            with OPTIMIZERS.switch_scope_and_registry(None) as registry:
                kind = registry.get(kind)
        if kind not in FUSED or {*IMPLEMENTATION, 'differentiable'} & set(self.optimizer_cfg):
            return False
        return all(p.is_floating_point() and p.device.type in FUSED_DEVICES for p in model.parameters())

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs) -> None:
        """Add the parameters of a module and its children; those of the whole model join in groups."""
        if prefix:
            return super().add_params(params, module, prefix=prefix, **kwargs)
        logger = MMLogger.get_current_instance()
        level = logger.level
        # mmengine logs a line for each parameter.
        logger.setLevel(logging.ERROR)
        try:
            super().add_params(params, module, **kwargs)
        finally:
            logger.setLevel(level)
        params[:] = self._join(params, module)

    def _join(self, singles: list[dict], model: nn.Module) -> list[dict]:
        names, groups = {id(p): name for name, p in model.named_parameters()}, {}
        for single in singles:
            # The multipliers are part of lr and weight_decay already.
            settings = {k: v for k, v in single.items() if k not in ('params', 'lr_mult', 'decay_mult')}
            for name, base in (('lr', self.base_lr), ('weight_decay', self.base_wd)):
                if base is not None:
                    settings.setdefault(name, base)
            if self.paramwise_cfg.get('layer_decay_rate') is not None:
                settings['lr'] *= self._layer_decay(model, names[id(single['params'][0])])
            key = repr(sorted(settings.items()))
            groups.setdefault(key, dict(settings, params=[]))['params'] += single['params']
        return list(groups.values())

    def _layer_decay(self, model: nn.Module, name: str) -> float:
        backbone = getattr(model, 'backbone', None)
        if not hasattr(backbone, 'get_layer_depth'):
            raise InputError(
                f'paramwise_cfg.layer_decay_rate needs a backbone that counts its layers; '
                f'{type(backbone).__name__} of {type(model).__name__} has no get_layer_depth'
            )
        depth, layers = backbone.get_layer_depth(name, prefix='backbone.')
        return self.paramwise_cfg['layer_decay_rate'] ** (layers - 1 - depth)


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's AmpOptimWrapper on a CPU, which it refuses: bfloat16 by autocast, and a loss scaler.

    ``tools/train.py`` replaces AmpOptimWrapper by this where there is no GPU. The arguments are the same.
    """

    def __init__(self, loss_scale='dynamic', dtype: str | None = None, **kwargs):
        if dtype not in (None, 'bfloat16', torch.bfloat16):
            raise InputError(f'a CPU has bfloat16 only: set optim_wrapper.dtype=bfloat16, not {dtype}')
        # AmpOptimWrapper.__init__ is skipped, because it asks for a GPU.
        OptimWrapper.__init__(self, **kwargs)
        fixed = isinstance(loss_scale, (int, float))
        settings = dict(init_scale=float(loss_scale)) if fixed else loss_scale
        if not isinstance(settings, dict) and settings != 'dynamic':
            raise InputError(f'optim_wrapper.loss_scale={loss_scale!r} is no number, dict or "dynamic"')
        self._scale_update_param = loss_scale if fixed else None
        self.loss_scaler = torch.amp.GradScaler('cpu', **(settings if isinstance(settings, dict) else {}))
        self.cast_dtype = torch.bfloat16


def single_wrappers(wrapper) -> list[OptimWrapper]:
    """The wrappers of one optimizer each; none before they are built."""
    if isinstance(wrapper, OptimWrapperDict):
        return list(wrapper.optim_wrappers.values())
    return [wrapper] if isinstance(wrapper, OptimWrapper) else []


def all_schedulers(schedulers) -> list:
    """The schedulers of a run, of one optimizer or several; none before they are built."""
    if isinstance(schedulers, dict):
        schedulers = [] if 'type' in schedulers else chain(*schedulers.values())
    return [scheduler for scheduler in schedulers or () if not isinstance(scheduler, dict)]


def is_accumulating(wrapper: OptimWrapper | OptimWrapperDict) -> bool:
    """Whether a gradient waits for further iterations to be added before an optimizer takes its step."""
    return not all(single.should_update() for single in single_wrappers(wrapper))


def accept_state(path: str, optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Refuse the state of another optimizer with an InputError; keep how this machine computes a step."""
    old, new = saved['param_groups'], optimizer.param_groups
    instead = f'resume with the optim_wrapper of that run, or start anew: --cfg-options load_from={path}'
    sizes, wanted = ([len(group['params']) for group in groups] for groups in (old, new))
    if sizes != wanted:
        raise InputError(
            f'the optimizer in {path} has {len(old)} groups of {sum(sizes)} parameters, that of the config '
            f'{len(new)} of {sum(wanted)}; {instead}'
        )
    # Another version of torch may have other switches, whose values are bool or None.
    numbers = [k for k, v in optimizer.defaults.items() if type(v) in (int, float, tuple)]
    for group, own in zip(old, new, strict=True):
        if missing := [k for k in numbers if k not in group]:
            raise InputError(
                f'the optimizer in {path} has no {", ".join(missing)}, as {type(optimizer).__name__} of the '
                f'config has; {instead}'
            )
        group.update({k: own[k] for k in IMPLEMENTATION if k in own})
