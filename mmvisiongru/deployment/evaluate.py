"""Metrics of exported files, by the test loop of the config."""

import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor, nn

from .runtimes import Run


def evaluate(runner: Runner, runs: dict[str, Run]) -> dict[str, dict[str, float]]:
    """Metrics of the runner's model and of each of ``runs`` on the test set, by name."""
    metrics = {'torch': runner.test()}
    for name, run in runs.items():
        _replace(runner.model, run)
        metrics[name] = runner.test()
    return metrics


def _replace(model: nn.Module, run: Run) -> None:
    """Let a file compute the logits from RGB images; the model does the rest, such as resizing them."""
    if hasattr(model, 'decode_head'):
        model.data_preprocessor = MODELS.build(dict(type='mmseg.SegDataPreProcessor', bgr_to_rgb=True))
        model.inference = lambda images, _metas: _logits(run, images, model.out_channels)
    else:
        model.data_preprocessor = MODELS.build(dict(type='mmpretrain.ClsDataPreprocessor', to_rgb=True))
        model.extract_feat = lambda images: _logits(run, images, model.head.num_classes)
        model.head.forward = lambda logits: logits


def _logits(run: Run, images: Tensor, classes: int) -> Tensor:
    """Logits, or values with the same softmax or the same largest class where a file gives only those."""
    outputs = {name: torch.from_numpy(x) for name, x in run(images.cpu().numpy()).items()}
    if 'logits' in outputs:
        return outputs['logits']
    if 'scores' in outputs:
        return outputs['scores'].log()
    return torch.nn.functional.one_hot(outputs['labels'], classes).movedim(-1, 1).float()
