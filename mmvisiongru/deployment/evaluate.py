"""Metrics of a file: the config's own test loop, with the file in place of the model."""

import torch
from mmengine.runner import Runner
from torch import Tensor

from .runtimes import Run


def evaluate(runner: Runner, runs: dict[str, Run]) -> dict[str, dict[str, float]]:
    """Metrics of the runner's model and of each of ``runs`` on the test set, by name."""
    metrics = {'torch': runner.test()}
    for name, run in runs.items():
        _replace(runner.model, run)
        metrics[name] = runner.test()
    return metrics


def _replace(model, run: Run) -> None:
    """Let a file compute what the model would: raw images in, and on with the model's own post-processing."""
    preprocess = model.data_preprocessor
    preprocess._enable_normalize = False
    if hasattr(model, 'encode_decode'):
        preprocess._channel_conversion = True
        model.inference = lambda images, _metas: _logits(run, images, model.out_channels)
    else:
        preprocess.to_rgb = True
        model.extract_feat = lambda images: _logits(run, images, model.head.num_classes)
        model.head.forward = lambda logits: logits


def _logits(run: Run, images: Tensor, classes: int) -> Tensor:
    """Logits, of files that give scores or labels such that these come out again."""
    outputs = {name: torch.from_numpy(x) for name, x in run(images.cpu().numpy()).items()}
    if 'logits' in outputs:
        return outputs['logits']
    if 'scores' in outputs:
        return outputs['scores'].log()
    return torch.nn.functional.one_hot(outputs['labels'], classes).movedim(-1, 1).float()
