"""Which setting of a config an exception comes from, when a part of it cannot be built."""

import inspect
import re
import traceback
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType

from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmvisiongru.errors import did_you_mean, in_one_line
from mmvisiongru.launch.names import arguments_of, unknown_type

# Methods of Runner that build a part, and the keys of the config that say which; the first stands for all.
PARTS = {
    'setup_env': ('env_cfg',),
    'set_randomness': ('randomness',),
    'build_log_processor': ('log_processor',),
    'build_visualizer': ('visualizer',),
    'build_model': ('model',),
    'wrap_model': ('model_wrapper_cfg',),
    'register_default_hooks': ('default_hooks',),
    'register_custom_hooks': ('custom_hooks',),
    'build_train_loop': ('train_dataloader', 'train_cfg'),
    'build_val_loop': ('val_dataloader', 'val_evaluator', 'val_cfg'),
    'build_test_loop': ('test_dataloader', 'test_evaluator', 'test_cfg'),
    'build_optim_wrapper': ('optim_wrapper',),
    'scale_lr': ('auto_scale_lr',),
    'build_param_scheduler': ('param_scheduler',),
}


def explain(error: Exception, cfg: Config) -> str:
    """What failed and where in the config, in one line.

    Args:
        error (Exception): Raised while something that ``cfg`` describes was built, with its traceback.
        cfg (Config): The config.
    """
    # The part of the config that is being built, and the innermost setting in it that was.
    part, place, frame, text = [], 'config', None, in_one_line(error)
    for candidate, _ in traceback.walk_tb(error.__traceback__):
        name, local = candidate.f_code.co_name, candidate.f_locals
        if name in PARTS and isinstance(local.get('self'), Runner):
            part = [key for key in PARTS[name] if cfg.get(key) is not None]
            place, frame = (part or ['config'])[0], candidate
        elif name.startswith('build') and isinstance(local.get('cfg'), dict) and 'type' in local['cfg']:
            within = [] if place == 'config' else [place]
            place = _locate(cfg, local['cfg'], within) or _locate(cfg, local['cfg'], part) or place
            frame = candidate
        elif name == 'build_dataloader':
            # The loop that holds it is the setting before.
            place, frame = (part or [place])[0], candidate
    if frame and (reason := _unknown_argument(error, frame) or _unknown_type(frame)):
        text = reason
    return f'{place} in {cfg.filename}: {text}'


def _locate(cfg: Config, settings: dict, places: list[str]) -> str | None:
    """The place of the settings in a config, within the given ones.

    What is built may have been copied and filled up on the way, so the one of the same type that has most in
    common with it is taken.
    """
    best, found = 0, None
    for place in places or list(cfg):
        for name, node in _nodes(_at(cfg, place), place):
            common = sum(_same(node[key], settings.get(key)) for key in node)
            if _same(node['type'], settings['type']) and common > best:
                best, found = common, name
    return found


def _at(cfg: Config, place: str):
    """The value at a dotted name."""
    for key in place.split('.'):
        cfg = cfg[int(key) if isinstance(cfg, (list, tuple)) else key]
    return cfg


def _nodes(node, place: str) -> Iterator[tuple[str, dict]]:
    """All settings of a type in a part of a config, with their dotted names."""
    if isinstance(node, dict) and 'type' in node:
        yield place, node
    if isinstance(node, (dict, list, tuple)):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _nodes(child, f'{place}.{key}')


def _same(a, b) -> bool:
    try:
        return bool(a == b)
    # Arrays and tensors among the settings do not compare to one truth.
    except Exception:
        return False


def _unknown_argument(error: Exception, frame: FrameType) -> str | None:
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    kind = DataLoader if frame.f_code.co_name == 'build_dataloader' else _kind(frame)
    if not (isinstance(error, TypeError) and found and inspect.isclass(kind)):
        return None
    known = arguments_of(kind)
    # It may have been for something that the class itself called.
    if known is None or found[1] in known:
        return None
    hint = did_you_mean(found[1], known) or f'; it takes {", ".join(sorted(known)) or "none"}'
    return f'{kind.__name__} takes no argument {found[1]!r}{hint}'


def _kind(frame: FrameType):
    """The class that a build function of mmengine had found."""
    return frame.f_locals.get('obj_cls') or frame.f_locals.get('scheduler_cls')


def _unknown_type(frame: FrameType) -> str | None:
    registry, kind = frame.f_locals.get('registry'), (frame.f_locals.get('cfg') or {}).get('type')
    if not (isinstance(registry, Registry) and isinstance(kind, str)):
        return None
    with suppress(RuntimeError):
        if registry.get(kind) is not None:
            return None
    return unknown_type(kind, registry)
