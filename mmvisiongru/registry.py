"""Registries of mmvisiongru. Light on purpose: the registry imports it to resolve the scope."""

from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, locations=['mmvisiongru.models'])
