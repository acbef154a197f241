"""Models to measure, by the name of a config, of a model of mmpretrain or mmseg, or of a backbone."""

import re
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import cache
from pathlib import Path

import torch
import yaml
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmvisiongru.config import config_files, get_config
from mmvisiongru.errors import InputError
from mmvisiongru.launch.processes import replace_sync_bn

# What the backbones of this package call the backend of their operator.
BACKEND_ARGUMENTS = {
    'mmvisiongru.VisionGRU': 'scan_backend',
    'mmvisiongru.VRWKV': 'wkv_backend',
    'mmvisiongru.VRWKVAdapter': 'wkv_backend',
}
# What is compared over resolutions: its name in tables and pictures, and the model, of linear cost or not.
COMPARED = {
    'VisionGRU-tiny': 'visiongru-tiny_8xb128_in1k',
    'VRWKV-S': 'vrwkv-small_8xb128_in1k',
    'Swin-T': 'swin-tiny_16xb64_in1k',
    'DeiT-S': 'deit-small_4xb256_in1k',
}
# What --dtype takes: autocast to the dtype; with '-weights' the model itself is converted, for inference.
AUTOCAST = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)
CONVERTED = {f'{name}-weights': AUTOCAST[name] for name in ('bfloat16', 'float16')}
PRECISIONS = (*AUTOCAST, *CONVERTED)
PRECISIONS_HELP = 'other than float32: autocast to it, or run a model whose weights were converted to it'


def model_config(name: str) -> Config:
    """Read the config of a model.

    Args:
        name (str): A config file of either task; the name of a config of this package, of a model that
            mmpretrain knows, or of a config that mmseg ships; or a backbone as ``SCOPE.TYPE:ARCH``, e.g.
            ``mmpretrain.ConvNeXt:tiny``.

    Raises:
        InputError: There is no model of that name.
    """
    if name.endswith('.py'):
        return get_config(name, required=('model',))
    if name.startswith(('mmpretrain.', 'mmseg.', 'mmvisiongru.')):
        return _backbone_config(*name.partition(':')[::2])
    if path := config_files().get(name):
        return get_config(str(path), required=('model',))
    if entry := mmpretrain_models().get(name):
        return Config.fromfile(entry.config)
    if path := _mmseg_configs().get(name):
        return Config.fromfile(path)
    known = (*config_files(), *mmpretrain_models(), *_mmseg_configs())
    kin = [n for n in known if n.startswith(re.split('[-_]', name)[0])]
    raise InputError(
        f'{name!r} is neither a config file (*.py), nor a config of this package, nor a model of mmpretrain '
        f'or mmseg, nor a backbone (SCOPE.TYPE:ARCH); near: {", ".join(kin[:5]) or "none"}'
    )


def build_model(name: str, scan_backend: str = 'auto', device: str = 'cpu') -> nn.Module:
    """Build a model that :func:`model_config` finds, with random weights and the given backend of its scan.

    Some backbones of mmpretrain cannot be built on the meta device; build them on the CPU and move them.
    """
    cfg = model_config(name)
    model = _single_view(cfg.model)
    backbone = model.get('backbone') or model
    if argument := BACKEND_ARGUMENTS.get(backbone.type):
        backbone[argument] = scan_backend
    replace_sync_bn(model)
    # As the runner hands it to the model.
    if cfg.get('data_preprocessor'):
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')), torch.device(device):
        return MODELS.build(model)


def image_size(name: str, default: int = 224) -> tuple[int, int]:
    """Height and width that a config trains a segmentor or tests a classifier with."""
    cfg = model_config(name)
    if size := (_single_view(cfg.model).get('data_preprocessor') or {}).get('size'):
        return tuple(size)
    for loader in ('test_dataloader', 'train_dataloader'):
        for step in reversed((cfg.get(loader) or {}).get('dataset', {}).get('pipeline', [])):
            size = step.get('crop_size') or step.get('scale')
            if size:
                return tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    return default, default


def _single_view(model: dict) -> dict:
    """The model itself, of a wrapper for test-time augmentation the model that sees each view."""
    return model.get('module') or model


def forward(model: nn.Module, x: Tensor):
    """Raw output for images (B, C, H, W): of a classifier or segmentor up to its head, or of a backbone."""
    return model(x, mode='tensor') if isinstance(model, BaseModel) else model(x)


def inference(model: nn.Module, x: Tensor, context: AbstractContextManager | None = None):
    """:func:`forward` as in a test: evaluation mode, no gradients, in a context such as autocast."""
    model.eval()
    # Not inference_mode, in which autocast never keeps a weight that it converts.
    with torch.no_grad(), context or nullcontext():
        return forward(model, x)


def in_precision(
    model: nn.Module, x: Tensor, precision: str
) -> tuple[nn.Module, Tensor, AbstractContextManager]:
    """A model and its input in one of PRECISIONS, and the context to call it in."""
    if dtype := CONVERTED.get(precision):
        return deepcopy(model).to(dtype), x.to(dtype), nullcontext()
    dtype = AUTOCAST[precision]
    return model, x, torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32)


def _backbone_config(kind: str, arch: str) -> Config:
    scope, _, backbone = kind.partition('.')
    with DefaultScope.overwrite_default_scope(scope):
        found = MODELS.get(kind)
    if found is None:
        raise InputError(f'{scope} has no backbone {backbone!r}')
    return Config(dict(model=dict(type=kind, **(dict(arch=arch) if arch else {})), default_scope=scope))


def reported_results(name: str) -> tuple[dict[str, float], str]:
    """Metrics that the model index of mmpretrain or mmseg states for a model, and which of the two does."""
    if entry := mmpretrain_models().get(name):
        return dict(entry.results[0].metrics), 'mmpretrain'
    found = {}
    for metafile in _mmseg_configs()[name].parent.glob('metafile.y*ml'):
        # Of two entries of a name the first is a shorter schedule, as the name of its weights shows.
        for entry in yaml.safe_load(metafile.read_text('utf-8'))['Models']:
            if entry['Name'] == name:
                found = entry['Results']
    return dict((found[0] if isinstance(found, list) else found)['Metrics']), 'mmseg'


@cache
def mmpretrain_models() -> dict:
    """Model index of mmpretrain: name to its entry, with results and the path of the config."""
    from mmpretrain.apis.model import ModelHub

    ModelHub._register_mmpretrain_models()
    return ModelHub._models_dict


@cache
def _mmseg_configs() -> dict[str, Path]:
    import mmseg

    folder = Path(mmseg.__file__).parent / '.mim' / 'configs'
    return {path.stem: path for path in sorted(folder.rglob('*.py')) if '_base_' not in path.parts}
