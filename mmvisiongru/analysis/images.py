"""Images of the user's own, for tools that need no labels."""

import os.path as osp

import mmcv
import mmengine
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mmvisiongru.errors import InputError
from mmvisiongru.image_files import PICTURES


def find_images(path: str) -> list[str]:
    """The image, or all in the folder and in those inside it.

    Raises:
        InputError: There is none, or one that cannot be read.
    """
    paths = [path]
    if osp.isdir(path):
        names = mmengine.scandir(path, PICTURES, recursive=True, case_sensitive=False)
        paths = [osp.join(path, name) for name in sorted(names)]
    if not paths:
        raise InputError(f'no image ({", ".join(PICTURES)}) in {path}')
    for path in paths:
        if not osp.isfile(path):
            raise InputError(f'image {path} does not exist')
        read_image(path)
    return paths


def read_image(path: str):
    """An image as mmcv reads it, (H, W, 3) BGR uint8; mmcv returns nothing or raises if it cannot."""
    try:
        image = mmcv.imread(path)
    except Exception as error:
        raise InputError(f'{path} is not an image that can be read') from error
    if image is None:
        raise InputError(f'{path} is not an image that can be read')
    return image


def normalise(model: nn.Module, image: Tensor) -> Tensor:
    """A BGR image (3, H, W) in 0..255 as the model's preprocessor hands it on, (1, 3, H, W).

    A model without one, such as a backbone, gets RGB with the mean and deviation of ImageNet.
    """
    preprocessor = getattr(model, 'data_preprocessor', None)
    mean, std, turned = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375]), True
    if getattr(preprocessor, 'mean', None) is not None:
        mean, std = preprocessor.mean.flatten(), preprocessor.std.flatten()
        # mmseg's name and mmpretrain's.
        turned = getattr(preprocessor, 'channel_conversion', getattr(preprocessor, 'to_rgb', False))
    image = image.float().flip(0) if turned else image.float()
    return ((image - mean[:, None, None]) / std[:, None, None])[None]


def read_inputs(model: nn.Module, path: str | None, number: int, shape: tuple[int, int]) -> list[Tensor]:
    """Images of one size as a backbone gets them.

    Args:
        model (nn.Module): Says how images are normalised.
        path (str, optional): Image or folder; None takes noise.
        number (int): Images at most, spread over the folder; of noise, as many.
        shape (tuple[int, int]): Height and width to which they are resized.

    Returns:
        list[Tensor]: (1, 3, H, W) each.
    """
    if path is None:
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(1, 3, *shape, generator=generator) for _ in range(number)]
    paths = find_images(path)
    number = min(number, len(paths))
    images = []
    for i in range(number):
        image = torch.from_numpy(read_image(paths[i * len(paths) // number]).copy()).permute(2, 0, 1)
        image = interpolate(image[None].float(), tuple(shape), mode='bilinear', antialias=True)[0]
        images.append(normalise(model, image))
    return images
