"""Registries of mmvisiongru. Light on purpose: the registry imports it to resolve the scope."""

from importlib import import_module

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import Registry, build_runner_from_cfg


class ModelRegistry(Registry):
    """The registry of models, which imports the heads, and mmseg with them, when a config names one."""

    heads = 'mmvisiongru.models.heads'

    def get(self, key: str) -> type | None:
        """The class of a name, None if there is none.

        Raises:
            ImportError: The name ends in Head and mmseg, which heads need, is not installed.
        """
        found = super().get(key)
        if found is None and key.endswith('Head'):
            import_module(self.heads)
            found = super().get(key)
        return found


MODELS = ModelRegistry('model', parent=MMENGINE_MODELS, locations=['mmvisiongru.models'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, locations=['mmvisiongru.engine.hooks'])
OPTIM_WRAPPERS = Registry(
    'optimizer wrapper', parent=MMENGINE_OPTIM_WRAPPERS, locations=['mmvisiongru.engine.amp']
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    locations=['mmvisiongru.engine.optim'],
)
RUNNERS = Registry(
    'runner',
    build_func=build_runner_from_cfg,
    parent=MMENGINE_RUNNERS,
    locations=['mmvisiongru.engine.runner'],
)
