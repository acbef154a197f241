"""Pictures of what a classifier predicts."""

import os.path as osp

from mmengine.hooks import Hook
from mmengine.visualization import Visualizer

from mmvisiongru.registry import HOOKS


@HOOKS.register_module()
class PictureHook(Hook):
    """Draw the images of a test with their predictions, also under test-time augmentation.

    A picture lies in a folder of the name of the one that its image is in, and keeps the whole name of the
    image; where that is taken, it gets a number. mmpretrain's VisualizationHook writes all to one folder,
    where equal names of different classes overwrite each other, and does not know of several views.

    Args:
        out_dir (str, optional): Where to; None writes nothing.
        interval (int): Draw every n-th image.
        show (bool): Show each in a window, too.
        wait_time (float): Seconds to show it.
    """

    def __init__(self, out_dir: str | None = None, interval: int = 1, show=False, wait_time: float = 0):
        self.out_dir, self.interval = out_dir, interval
        self.options = dict(show=show, wait_time=wait_time)
        self.seen, self.written = 0, set()

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Draw what is due of a batch."""
        images = _plain_view(data_batch)
        for image, sample in zip(images, outputs, strict=True):
            self.seen += 1
            if (self.seen - 1) % self.interval:
                continue
            path = sample.get('img_path') or str(self.seen)
            # Images are loaded as BGR.
            image = image.flip(0).permute(1, 2, 0).cpu().numpy().astype('uint8')
            Visualizer.get_current_instance().visualize_cls(
                image=image,
                data_sample=sample,
                name=osp.basename(path),
                out_file=self._new_path(path) if self.out_dir else None,
                **self.options,
            )

    def _new_path(self, image: str) -> str:
        folder, name = osp.split(image)
        stem = osp.join(self.out_dir, osp.basename(folder), name)
        path, number = f'{stem}.png', 1
        while path in self.written:
            number += 1
            path = f'{stem}_{number}.png'
        self.written.add(path)
        return path


def _plain_view(data_batch: dict):
    """The images (C, H, W) of a batch; of several views of each, those that are not mirrored."""
    inputs = data_batch['inputs']
    if getattr(inputs[0], 'ndim', 4) == 3:
        return inputs
    mirrored = [bool(samples[0].get('flip')) for samples in data_batch['data_samples']]
    return inputs[mirrored.index(False) if False in mirrored else 0]
