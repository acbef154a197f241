"""What exported files lose: metrics by the test loop of the config, and differences on a random image."""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor, nn

from mmvisiongru.deployment.verify import Run, random_images


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


def loss(exact: Run, run: Run, shape: Sequence[int]) -> str:
    """Say how far a file is from an exact one on a random image."""
    images = random_images(shape).numpy()
    found = run(images)
    words = []
    for name, wanted in exact(images).items():
        difference = found[name] - wanted
        if name == 'labels':
            words.append(f'{np.mean(difference != 0):.2%} of the labels differ')
        else:
            words.append(f'{name} have an RMS error of {rms(difference) / rms(wanted):.2%}')
    return ', '.join(words)


def rms(x: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
