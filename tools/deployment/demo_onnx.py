"""Draw what a model exported by tools/deployment/export.py predicts for images. Both tasks, without torch.

    python tools/deployment/demo_onnx.py IMAGE_OR_FOLDER model.onnx --out work_dirs/demo

Needs onnxruntime, numpy and pillow, and from this repository painting.py beside it, so you can copy the two
elsewhere. Lines and pictures are those of tools/visualization/image_demo.py.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

# Not on the path when the tests import this file.
sys.path.append(str(Path(__file__).resolve().parent))
from painting import enlarge, paint, side_by_side

# Marks pictures in their metadata as ours, as image_demo.py does: the next call may replace them.
SOFTWARE = 'mmvisiongru'
PICTURES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp', '.ppm')


class InputError(ValueError):
    """What the user gave cannot be used."""


class Model:
    """A file with its metadata."""

    def __init__(self, path: str):
        if not Path(path).is_file():
            raise InputError(f'model {path} does not exist')
        try:
            options = onnxruntime.SessionOptions()
            # Errors come as exceptions; its own lines about them would come on top.
            options.log_severity_level = 4
            self.session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
        # The exceptions of ONNX Runtime have no common base.
        except Exception as error:
            raise InputError(
                f'{path} is not a readable ONNX file ({" ".join(str(error).split())[:200]})'
            ) from error
        meta = self.session.get_modelmeta().custom_metadata_map
        if not {'classes', 'palette', 'task', 'size', 'resize'} <= set(meta):
            raise InputError(
                f'{path} was not written by tools/deployment/export.py: its metadata are missing'
            )
        self.task = meta['task']
        self.classes, self.palette, self.size, self.steps = (
            json.loads(meta[key]) for key in ('classes', 'palette', 'size', 'resize')
        )
        self.notes = json.loads(meta.get('notes', '[]'))
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs for an image (H, W, 3), RGB, without the dimension of the batch."""
        x = image.astype(np.float32).transpose(2, 0, 1)[None]
        return {k: v[0] for k, v in zip(self.outputs, self.session.run(None, {'images': x}), strict=True)}


def cubic(distance: np.ndarray) -> np.ndarray:
    """The weight of a pixel at a distance, as cv2 and torch take it."""
    d, a = np.abs(distance), -0.75
    near, far = ((a + 2) * d - (a + 3)) * d * d + 1, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


# Offsets of the pixels around a position, and their weights by distance.
KERNELS = dict(bilinear=((0, 1), lambda d: 1 - np.abs(d)), bicubic=((-1, 0, 1, 2), cubic))


def interpolate(x: np.ndarray, size: tuple[int, int], kind: str = 'bilinear') -> np.ndarray:
    """Resizing of (..., H, W) between pixel centres, as cv2 and torch do; pillow would smooth."""
    for axis, n in zip((-2, -1), size, strict=True):
        old = x.shape[axis]
        if kind == 'nearest':
            x = x.take((np.arange(n) * (old / n)).astype(int), axis)
            continue
        at = (np.arange(n) + 0.5) * old / n - 0.5
        low, (offsets, weight) = np.floor(at).astype(int), KERNELS[kind]
        shape = (-1, 1) if axis == -2 else (-1,)
        x = sum(
            x.take(np.clip(low + i, 0, old - 1), axis)
            * weight(at - low - i).astype(np.float32).reshape(shape)
            for i in offsets
        )
    return x


def resize(image: np.ndarray, size: tuple[int, int], backend='cv2', interpolation='bilinear') -> np.ndarray:
    """An image (H, W, 3) in another size."""
    if image.shape[:2] == tuple(size):
        return image
    if backend == 'pillow':
        kind = Image.Resampling[interpolation.upper()]
        return np.asarray(Image.fromarray(image).resize(size[::-1], kind))
    if interpolation not in (*KERNELS, 'nearest'):
        raise InputError(f"interpolation='{interpolation}' of the test pipeline is not in this demo")
    resized = interpolate(image.transpose(2, 0, 1), size, interpolation)
    return np.rint(np.clip(resized, 0, 255)).astype(np.uint8).transpose(1, 2, 0)


def follow(step: dict, image: np.ndarray) -> np.ndarray:
    """One step of the test pipeline that changes the size."""
    height, width = image.shape[:2]
    how = {key: step[key] for key in ('backend', 'interpolation') if step.get(key)}
    if step['type'] == 'CenterCrop':
        size = step['crop_size']
        crop_w, crop_h = (size, size) if isinstance(size, int) else size
        top, left = (max(0, round((n - crop) / 2)) for n, crop in ((height, crop_h), (width, crop_w)))
        return image[top : top + crop_h, left : left + crop_w]
    scale = step.get('scale')
    if step['type'] == 'ResizeEdge':
        edge = step.get('edge', 'short')
        wide = edge == 'width' or (edge == 'short' and width < height) or (edge == 'long' and width > height)
        size = (int(scale * height / width), scale) if wide else (scale, int(scale * width / height))
        return resize(image, size, **how)
    if scale is None:
        factors = np.broadcast_to(step['scale_factor'], 2)
        scale = [int(n * factor + 0.5) for n, factor in zip((width, height), factors, strict=True)]
    scale = [scale, scale] if isinstance(scale, int) else scale
    if not step.get('keep_ratio'):
        return resize(image, (scale[1], scale[0]), **how)
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return resize(image, (int(height * factor + 0.5), int(width * factor + 0.5)), **how)


def prepare(model: Model, image: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) in the size at which the model sees it."""
    if model.size:
        return resize(image, model.size)
    for step in model.steps:
        image = follow(step, image)
    return image


def read(path: Path) -> np.ndarray:
    """An image (H, W, 3), RGB, upright."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith('I'):
                # Of 16 bits cv2 keeps the upper half; pillow would clip.
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return np.asarray(upright.convert('RGB'))
    # A broken file fails in any way.
    except Exception as error:
        raise InputError(f'{path} is not an image that can be read') from error


def best(model: Model, scores: np.ndarray, shown: int) -> str:
    """The classes with the highest scores."""
    order = np.argsort(-scores, kind='stable')[:shown]
    return ', '.join(f'{model.classes[i]} {scores[i]:.1%}' for i in order)


def label_map(outputs: dict[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The label of each pixel of an image of this size, (H, W)."""
    maps = outputs.get('logits', outputs.get('scores'))
    if maps is not None:
        return (maps if maps.shape[1:] == size else interpolate(maps, size)).argmax(0)
    # Labels cannot be interpolated: the nearest one.
    rows, columns = (np.arange(n) * old // n for n, old in zip(size, outputs['labels'].shape, strict=True))
    return outputs['labels'][rows][:, columns]


def segment(model: Model, image: np.ndarray, outputs: dict, opacity: float) -> tuple[np.ndarray, str]:
    """The classes over the image, and those that cover most of it."""
    labels = label_map(outputs, image.shape[:2])
    shares = np.bincount(labels.ravel(), minlength=len(model.classes)) / labels.size
    return paint(image, labels, model.classes, model.palette, opacity), best(model, shares, 3)


def classify(model: Model, image: np.ndarray, outputs: dict, opacity: float) -> tuple[np.ndarray, str]:
    """The class above the image, and the highest scores where the file gives them."""
    scores = outputs.get('scores')
    if 'logits' in outputs:
        scores = np.exp(outputs['logits'] - outputs['logits'].max())
        scores /= scores.sum()
    first = model.classes[int(outputs['labels'])] if scores is None else best(model, scores, 1)
    picture = side_by_side({f'prediction: {first}': enlarge(image)}, model.classes)
    return picture, first if scores is None else best(model, scores, 5)


def find_images(path: str, out: str) -> dict[Path, Path]:
    """The image, or all below the folder, each with the PNG to write.

    The name ends in .png instead of the image's suffix; if that made two equal, all keep their suffix too.
    """
    source = Path(path)
    found, root, target = [source], source.parent, Path(out)
    if source.is_dir():
        found, root = sorted(p for p in source.rglob('*') if p.suffix.lower() in PICTURES), source
    if not found:
        raise InputError(f'no image ({", ".join(PICTURES)}) in {path}')
    if not found[0].is_file():
        raise InputError(f'image {path} does not exist')
    if root.resolve() in (target.resolve(), *(target.resolve().parents if source.is_dir() else ())):
        raise InputError(f'--out {out} is among the images; choose another folder')
    targets = [target / p.relative_to(root).with_suffix('.png') for p in found]
    if len(set(targets)) < len(found):
        targets = [target / f'{p.relative_to(root)}.png' for p in found]
    for path in targets:
        if path.exists() and not is_ours(path):
            raise InputError(f'{path} exists and was not written by this tool; choose another folder')
    return dict(zip(found, targets, strict=True))


def is_ours(path: Path) -> bool:
    """Whether this tool or image_demo.py wrote a picture."""
    try:
        with Image.open(path) as picture:
            return picture.info.get('Software') == SOFTWARE
    except OSError:
        return False


def save(picture: np.ndarray, path: Path) -> None:
    """Write a picture with its mark."""
    mark = PngInfo()
    mark.add_text('Software', SOFTWARE)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, pnginfo=mark)


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('img', help='image file or folder')
    parser.add_argument('model', help='file written by tools/deployment/export.py')
    parser.add_argument('--out', default='work_dirs/demo', help='folder for the pictures')
    parser.add_argument('--opacity', type=float, default=0.5, help='opacity of the classes over the image')
    return parser.parse_args(argv)


def run(args) -> None:
    """Predict and draw."""
    model = Model(args.model)
    for note in model.notes:
        print(f'note: {note}', file=sys.stderr)
    draw = segment if model.task == 'segmentation' else classify
    targets, bad = find_images(args.img, args.out), []
    for source, target in targets.items():
        try:
            image = read(source)
        except InputError as error:
            bad.append(str(error))
            continue
        x = prepare(model, image)
        picture, line = draw(model, image, model(x), args.opacity)
        save(picture, target)
        print(f'{source}: {line} (seen at {x.shape[1]} x {x.shape[0]})')
    done = len(targets) - len(bad)
    print(f'{done} picture{"s" * (done != 1)} in {args.out}')
    if bad:
        raise InputError(f'{len(bad)} of {len(targets)} images left out: {"; ".join(bad[:3])}')


def main(argv=None):
    """Run, and end with one line when the input cannot be used."""
    args = parse_args(argv)
    try:
        run(args)
    except (InputError, OSError) as error:
        print('error:', ' '.join(str(error).split()), file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    main()
