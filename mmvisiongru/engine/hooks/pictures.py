"""Write what a test predicts: pictures, and label maps."""

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from mmvisiongru.drawing import as_rgb, draw_sample
from mmvisiongru.errors import InputError
from mmvisiongru.outputs import output_paths, write_picture
from mmvisiongru.registry import HOOKS


@HOOKS.register_module()
class PictureHook(Hook):
    """Draw the images of a test with truth and prediction, of classifiers and segmentors.

    The pictures lie below ``out_dir`` as the images do below the folder that all of them are in. In a
    distributed test the first process draws those that it tested.

    Args:
        out_dir (str, optional): Folder for the pictures; None writes none.
        interval (int): Draw every n-th image.
        show (bool): Also show each picture in a window.
        wait_time (float): Seconds to show it.
    """

    def __init__(
        self, out_dir: str | None = None, interval: int = 1, show: bool = False, wait_time: float = 0
    ):
        self.out_dir, self.interval, self.show, self.wait_time = out_dir, interval, show, wait_time
        self.seen = self.written = 0

    def before_test(self, runner) -> None:
        """Settle the file of each image."""
        self.paths = output_paths(_images(runner), self.out_dir) if self.out_dir else {}

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Draw every n-th image of a batch."""
        if not is_main_process():
            return
        meta = runner.test_loop.dataloader.dataset.metainfo
        for image, sample in zip(_plain_view(data_batch), outputs, strict=True):
            self.seen += 1
            if (self.seen - 1) % self.interval:
                continue
            picture = draw_sample(as_rgb(image), sample, meta.get('classes'), meta.get('palette'))
            if self.out_dir:
                write_picture(self.paths[sample.img_path], picture)
                self.written += 1
            if self.show:
                runner.visualizer.show(picture, sample.img_path, self.wait_time)

    def after_test(self, runner) -> None:
        """Say where the pictures are."""
        if self.out_dir and is_main_process():
            runner.logger.info(f'{self.written} pictures in {self.out_dir}')


@HOOKS.register_module()
class LabelMapHook(Hook):
    """Write the classes that a segmentor predicts as PNG, numbered as in the files of the data set.

    Args:
        out_dir (str): Folder for the maps; they lie in it as the pictures of :class:`PictureHook` do.
    """

    def __init__(self, out_dir: str):
        self.out_dir = out_dir

    def before_test(self, runner) -> None:
        """Settle the file of each image."""
        self.paths = output_paths(_images(runner), self.out_dir)

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Write the maps of a batch."""
        for sample in outputs:
            labels = sample.pred_sem_seg.data.squeeze(0).cpu().numpy().astype(np.uint16)
            labels += bool(sample.get('reduce_zero_label'))
            labels = labels if labels.max() > 255 else labels.astype(np.uint8)
            write_picture(self.paths[sample.img_path], labels)

    def after_test(self, runner) -> None:
        """Say where the maps are."""
        runner.logger.info(f'{len(self.paths)} label maps in {self.out_dir}')


def _images(runner) -> list[str]:
    """The image files of the test set."""
    dataset = runner.test_loop.dataloader.dataset
    try:
        return [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]
    except (AttributeError, KeyError) as error:
        raise InputError(
            'the images of the test set are no files, after which to name what is written'
        ) from error


def _plain_view(data_batch: dict):
    """The images (C, H, W) of a batch; of several views of each, the largest that is not mirrored."""
    inputs = data_batch['inputs']
    if getattr(inputs[0], 'ndim', 4) == 3:
        return inputs
    plain = [
        view
        for view, samples in zip(inputs, data_batch['data_samples'], strict=True)
        if not samples[0].get('flip')
    ]
    return max(plain or inputs, key=lambda view: view[0].numel())
