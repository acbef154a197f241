"""Comparison of an exported file with torch."""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from mmvisiongru.errors import InputError

from .runtimes import Run
from .wrapper import Deployed

# Relative to the largest value; float32 resolves 1.2e-7.
TOLERANCE = 2e-6
# All differ from the exporter's example: odd, not square, two images, a single pixel.
SHAPES = ((1, 3, 61, 45), (1, 3, 64, 96), (2, 3, 33, 33), (1, 3, 1, 1))


def random_images(shape: Sequence[int]) -> Tensor:
    """Images with smooth and with sharp parts, the same ones every time."""
    generator = torch.Generator().manual_seed(sum(shape))
    coarse = torch.rand((*shape[:2], 4, 4), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, shape[2:], mode='bilinear')
    return 255 * (0.7 * smooth + 0.3 * torch.rand(tuple(shape), generator=generator))


def errors(model: Deployed, run: Run, shape: Sequence[int]) -> dict[str, float]:
    """Largest difference of each output from torch in float64, relative to the largest value.

    Two classes that are equal up to rounding may swap. So a label that differs counts as the distance of its
    logit from the largest one.
    """
    images = random_images(shape)
    found = run(images.numpy())
    with torch.no_grad():
        exact = deepcopy(model).double()
        logits = exact.logits(images.double())
    wanted = dict(logits=logits, scores=logits.softmax(1))
    differences = {}
    for name, value in found.items():
        value = torch.from_numpy(np.ascontiguousarray(value))
        if name == 'labels':
            lack = logits.amax(1) - logits.gather(1, value[:, None])[:, 0]
            # Each of two logits may be off by the tolerance.
            differences[name] = float(lack.max() / 2 / logits.abs().max())
        else:
            reference = wanted[name]
            differences[name] = float((value - reference).abs().max() / reference.abs().max())
    return differences


def verify(model: Deployed, run: Run, shapes: Sequence[Sequence[int]] = SHAPES) -> float:
    """The largest of :func:`errors` over images of the shapes.

    Raises:
        InputError: It is above ``TOLERANCE``.
    """
    worst = 0.0
    for shape in shapes:
        for name, error in errors(model, run, shape).items():
            # Not `>`, which is false for NaN.
            if not error <= TOLERANCE:
                raise InputError(
                    f'{name} of the file differ from torch by {error:.1e} of the largest value for images '
                    f'{" x ".join(map(str, shape))}, {TOLERANCE:.0e} is allowed; the file was not written'
                )
            worst = max(worst, error)
    return worst


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
