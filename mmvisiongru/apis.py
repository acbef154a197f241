"""mmvisiongru in one's own program: configs by name, and models with weights."""

import torch
from mmengine.config import Config
from torch import nn

from mmvisiongru._compat import set_inference_attributes
from mmvisiongru.checkpoint import SCHEME, Checkpoint, load_weights, read_checkpoint, state_dict_of
from mmvisiongru.config import get_config, list_configs, pipeline_of
from mmvisiongru.errors import InputError
from mmvisiongru.inference import optimize_for_inference
from mmvisiongru.measure import check_device
from mmvisiongru.models.layers.precision import score_in_float32
from mmvisiongru.zoo import build_model, dataset_meta, model_config

__all__ = ['get_config', 'get_model', 'list_configs']


def get_model(
    name: str | Config,
    checkpoint: str | None = None,
    device: str = 'cpu',
    dtype: torch.dtype = torch.float32,
    optimize: bool = False,
    pretrained: bool = False,
) -> nn.Module:
    """Build a model for inference.

    Args:
        name (str | Config): A config or its file; the name of a config of this package, of mmpretrain or of
            mmseg; a backbone as ``SCOPE.TYPE:ARCH``, e.g. ``mmvisiongru.VisionGRU:tiny``; or with
            ``pretrained`` the name of published weights, of which ``weights/README.md`` has a list.
        checkpoint (str, optional): A file that fits in every key, or the name of published weights. A
            backbone also takes those of a classifier or segmentor with this backbone. Without it weights are
            random.
        device (str): Device of the model.
        dtype (torch.dtype): Type of the weights, converted once. ``torch.bfloat16`` is faster on CPUs that
            have instructions for it; images may stay in float32.
        optimize (bool): Convert the model by :func:`mmvisiongru.optimize_for_inference`, which is faster on a
            CPU and takes less memory. It then runs under ``torch.no_grad()`` only.
        pretrained (bool): Build the model of the published weights ``name`` and load them.

    Returns:
        nn.Module: In evaluation mode. ``model.backbone(x)`` of a classifier or segmentor, or a backbone
        itself, gives a tuple of maps (B, C, H, W) for normalised images (B, 3, H, W). ``model.cfg`` is the
        config, and ``model.dataset_meta`` has the classes (None if unknown): ``inference_model`` of mmseg
        and mmpretrain take the model as it is.

    Raises:
        InputError: There is no such model or device, the config names what does not exist, or the checkpoint
            does not fit; the message is one line.

    Examples:
        >>> import torch
        >>> from mmvisiongru.apis import get_model
        >>> backbone = get_model('mmvisiongru.VisionGRU:pico')
        >>> [tuple(x.shape[2:]) for x in backbone(torch.rand(1, 3, 64, 96))]
        [(16, 24), (8, 12), (4, 6), (2, 3)]
    """
    if pretrained and (checkpoint or not isinstance(name, str)):
        raise InputError('pretrained=True takes the name of published weights, and no checkpoint besides')
    check_device(device)
    checkpoint = SCHEME + name if pretrained else checkpoint
    loaded = read_checkpoint(checkpoint) if checkpoint else None
    name = loaded.meta['config'] if pretrained else name
    cfg = model_config(name) if isinstance(name, str) else name
    model = build_model(cfg)
    if loaded:
        # A backbone takes its own weights out of those of a classifier or segmentor.
        inside = {} if hasattr(model, 'backbone') else state_dict_of(loaded.content, prefix='backbone.')
        load_weights(model, Checkpoint(loaded.path, inside) if inside else loaded)
    classes = (loaded and loaded.meta.get('dataset_meta')) or dataset_meta(cfg)
    set_inference_attributes(model, cfg, pipeline_of(cfg, 'test_dataloader'), classes)
    score_in_float32(model)
    model.to(device)
    # 16 bits would round the mean of images.
    parts = [part for name, part in model.named_children() if name != 'data_preprocessor']
    for part in parts if hasattr(model, 'data_preprocessor') else [model]:
        part.to(dtype)
    # eval() of a backbone of mmpretrain returns nothing.
    model.eval()
    return optimize_for_inference(model) if optimize else model
