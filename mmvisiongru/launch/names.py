"""Misspelt names inside a config, where mmengine and mmseg would ignore them or fail much later."""

import inspect
from collections.abc import Iterable, Iterator

from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, LOOPS, MODELS, OPTIMIZERS, RUNNERS, Registry
from torch import nn

from mmvisiongru.errors import InputError, did_you_mean

# What the constructors read of `paramwise_cfg`, without a signature to ask.
PARAMWISE = {
    'bias_decay_mult',
    'bias_lr_mult',
    'bypass_duplicate',
    'custom_keys',
    'dcn_offset_lr_mult',
    'dwconv_decay_mult',
    'flat_decay_mult',
    'norm_decay_mult',
}
DEFAULT_CONSTRUCTOR = 'DefaultOptimWrapperConstructor'
CONSTRUCTORS = {
    DEFAULT_CONSTRUCTOR: PARAMWISE,
    'GroupedOptimWrapperConstructor': PARAMWISE | {'layer_decay_rate'},
}
CUSTOM_KEY = {'lr_mult', 'decay_mult'}
SEGMENTOR_TEST = {
    'mode',
    'crop_size',
    'stride',
    'subdivision_steps',
    'subdivision_num_points',
    'scale_factor',
    'size',
    'size_divisor',
}
PREPROCESSOR_TEST = {'size', 'size_divisor'}
# Read with a default by the Runner, whatever else they hold.
RUNNER_KEYS = {
    'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit', 'tf32'},
    'auto_scale_lr': {'enable', 'base_batch_size'},
    'randomness': {'seed', 'diff_rank_seed', 'deterministic'},
}
SEGMENTORS = ('EncoderDecoder', 'CascadeEncoderDecoder')
DEFAULT_HOOKS = {'runtime_info', 'timer', 'logger', 'param_scheduler', 'checkpoint', 'sampler_seed'}
LOOP_TYPES = {'train_cfg': 'IterBasedTrainLoop', 'val_cfg': 'ValLoop', 'test_cfg': 'TestLoop'}


def check_names(cfg: Config) -> None:
    """Refuse keys that nothing reads in hooks, loops, ``paramwise_cfg`` and a segmentor's ``test_cfg``.

    Raises:
        InputError: A key is unknown; the message names the nearest one that is not.
    """
    scope = cfg.get('default_scope')
    default_hooks = cfg.get('default_hooks') or {}
    for name, hook in default_hooks.items():
        if isinstance(hook, dict) and 'type' not in hook:
            raise InputError(f'default_hooks.{name} has no type{did_you_mean(name, DEFAULT_HOOKS - {name})}')
    for i, hook in enumerate(cfg.get('custom_hooks') or []):
        _check_arguments(hook, HOOKS, scope, f'custom_hooks.{i}', {'priority'})
    for name, hook in default_hooks.items():
        _check_arguments(hook, HOOKS, scope, f'default_hooks.{name}', {'priority'})
    for name, kind in LOOP_TYPES.items():
        loop = cfg.get(name)
        if isinstance(loop, dict):
            kind = 'EpochBasedTrainLoop' if loop.get('by_epoch') else kind
            _check_arguments(dict(dict(type=kind), **loop), LOOPS, scope, name, {'by_epoch'})
    _check_type(dict(type=cfg.get('runner_type')), RUNNERS, scope, 'runner_type')
    wrapper = cfg.get('optim_wrapper') or {}
    _check_type(wrapper.get('optimizer') or {}, OPTIMIZERS, scope, 'optim_wrapper.optimizer')
    _check_paramwise(wrapper)
    model = cfg.get('model') or {}
    if str(model.get('type')).split('.')[-1] in SEGMENTORS:
        _check_keys(model.get('test_cfg') or {}, SEGMENTOR_TEST, 'model.test_cfg')
        sizes = (model.get('data_preprocessor') or {}).get('test_cfg') or {}
        _check_keys(sizes, PREPROCESSOR_TEST, 'model.data_preprocessor.test_cfg')
    for name, known in RUNNER_KEYS.items():
        _check_keys(cfg.get(name) or {}, known, name)


def _check_arguments(settings, registry, scope: str | None, place: str, also: set[str]) -> None:
    """Compare settings with the arguments of the class that they are for."""
    if not isinstance(settings, dict):
        return
    if 'type' not in settings:
        raise InputError(f'{place} has no type: {dict(settings)}')
    kind = resolve(settings['type'], registry, scope)
    accepted = arguments_of(kind) if inspect.isclass(kind) else None
    if inspect.isclass(kind) and issubclass(kind, EMAHook):
        # It hands what it does not know to the averaged model.
        average = resolve(settings.get('ema_type', 'ExponentialMovingAverage'), MODELS, scope)
        accepted = arguments_of(kind) | (arguments_of(average) - {'model'})
    if accepted is not None:
        _check_keys(settings, accepted | also | {'type', '_scope_'}, place)


def _check_type(settings: dict, registry: Registry, scope: str | None, place: str) -> None:
    """Refuse a type that does not exist, where mmengine would not say so."""
    kind = settings.get('type')
    if not isinstance(kind, str) or resolve(kind, registry, scope) is not None:
        return
    with registry.switch_scope_and_registry(scope) as own:
        raise InputError(f'{place}: {unknown_type(kind, own)}')


def resolve(kind, registry, scope: str | None):
    """The class that a config names, as its scope finds it; None if there is none."""
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(scope) as own:
        return own.get(kind)


def unknown_type(kind: str, registry: Registry) -> str:
    """What to say about a type that a registry, of the scope in use, does not have."""
    scope, _, name = kind.rpartition('.')
    own = registry._get_root_registry()._search_child(scope) if scope else registry
    if own is None:
        return f'no {registry.name} is registered as {kind!r}; is {scope} installed?'
    known = set(own.module_dict)
    while not scope and own.parent is not None:
        own = own.parent
        known |= set(own.module_dict)
    hint = did_you_mean(name, known, show=lambda near: repr(f'{scope}.{near}' if scope else near))
    if not scope and registry.scope == 'mmengine':
        hint = hint or "; set default_scope, to 'mmseg' or 'mmpretrain' for theirs"
    return f'no {own.name} is registered as {kind!r}{hint}'


def arguments_of(kind: type) -> set[str] | None:
    """Arguments that a class takes, None if only a run can tell."""
    names = set()
    for base in kind.__mro__:
        if '__init__' not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        names |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        # These two keep what they do not know for a call that would fail.
        if base in (CheckpointHook, EMAHook) or not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names - {'self', 'runner', 'dataloader', 'evaluator'}
    return None


def _check_paramwise(wrapper: dict) -> None:
    settings = wrapper.get('paramwise_cfg') or {}
    constructor = str(wrapper.get('constructor', DEFAULT_CONSTRUCTOR))
    if known := CONSTRUCTORS.get(constructor.split('.')[-1]):
        _check_keys(settings, known, 'optim_wrapper.paramwise_cfg')
    for name, multipliers in (settings.get('custom_keys') or {}).items():
        # Anything else goes to the optimizer's parameter group, where it may be meant.
        for key in multipliers:
            if key not in CUSTOM_KEY and (hint := did_you_mean(key, CUSTOM_KEY)):
                place = f'optim_wrapper.paramwise_cfg.custom_keys.{name}'
                raise InputError(f'unknown key {key!r} in {place}{hint}')


def _check_keys(settings: Iterable[str], known: set[str], place: str) -> None:
    for key in settings:
        if key not in known:
            hint = did_you_mean(key, known) or f'; known are {", ".join(sorted(known))}'
            raise InputError(f'unknown key {key!r} in {place}{hint}')


def unmatched_custom_keys(cfg: Config, model: nn.Module) -> Iterator[str]:
    """One line for each of ``paramwise_cfg.custom_keys`` that is in the name of no parameter."""
    keys = ((cfg.get('optim_wrapper') or {}).get('paramwise_cfg') or {}).get('custom_keys') or {}
    names = [n for n, _ in (model.module if is_model_wrapper(model) else model).named_parameters()]
    parts = {part for name in names for part in name.split('.') if not part.isdigit()}
    parts |= {'.'.join(name.split('.')[:i]) for name in names for i in range(2, name.count('.') + 1)}
    # An optional part that this model leaves out is not misspelt.
    optional = {name for module in model.modules() for name, value in vars(module).items() if value is None}
    for key in keys:
        if key not in optional and not any(key in name for name in names):
            nowhere = 'of paramwise_cfg is in the name of no parameter'
            yield f'custom_keys {key!r} {nowhere}{did_you_mean(key, parts)}'
