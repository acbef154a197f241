"""Registries of mmvisiongru. Light on purpose: the registry imports it to resolve the scope."""

from importlib import import_module

from mmengine import registry as parents
from mmengine.registry import Registry
from mmengine.runner import CheckpointLoader

from mmvisiongru.checkpoint import SCHEME, load_checkpoint_file


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


MODELS = ModelRegistry('model', parent=parents.MODELS, locations=['mmvisiongru.models'])
HOOKS = Registry('hook', parent=parents.HOOKS, locations=['mmvisiongru.engine.hooks'])
RUNNERS = Registry(
    'runner', parents.build_runner_from_cfg, parents.RUNNERS, locations=['mmvisiongru.engine.runner']
)
OPTIM = ['mmvisiongru.engine.optim']
OPTIM_WRAPPERS = Registry('optimizer wrapper', parent=parents.OPTIM_WRAPPERS, locations=OPTIM)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor', parent=parents.OPTIM_WRAPPER_CONSTRUCTORS, locations=OPTIM
)

# init_cfg=dict(type='Pretrained', checkpoint='mmvisiongru://NAME', prefix='backbone.')
CheckpointLoader.register_scheme(SCHEME, load_checkpoint_file, force=True)
