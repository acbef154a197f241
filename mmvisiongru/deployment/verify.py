"""Comparison of an exported file with torch."""

from collections.abc import Callable, Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from mmvisiongru.errors import InputError

from .wrapper import Deployed

# A file as a function, from images to outputs by name.
Run = Callable[[np.ndarray], dict[str, np.ndarray]]
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


def verify(model: Deployed, run: Run, shapes: Sequence[Sequence[int]] = SHAPES) -> float:
    """The largest difference from torch in float64 over images of the shapes, relative to the largest value.

    Two classes that are equal up to rounding may swap. So a label that differs counts as the distance of its
    logit from the largest one, over two, as each of the two may be off. InputError if above ``TOLERANCE``.
    """
    exact, worst = deepcopy(model).double(), 0.0
    for shape in shapes:
        images = random_images(shape)
        with torch.no_grad():
            logits = exact.logits(images.double())
        for name, value in run(images.numpy()).items():
            value = torch.from_numpy(np.ascontiguousarray(value))
            reference = logits.softmax(1) if name == 'scores' else logits
            if name == 'labels':
                difference = (logits.amax(1) - logits.gather(1, value[:, None])[:, 0]) / 2
            else:
                difference = (value - reference).abs()
            error = float(difference.max() / reference.abs().max())
            # Not `>`, which is false for NaN.
            if not error <= TOLERANCE:
                raise InputError(
                    f'{name} of the file differ from torch by {error:.1e} of the largest value for images '
                    f'{" x ".join(map(str, shape))}, {TOLERANCE:.0e} is allowed; the file was not written'
                )
            worst = max(worst, error)
    return worst
