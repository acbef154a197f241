"""Test a classifier (mmpretrain), a segmentor (mmseg) or a detector (mmdet): metrics, predictions, pictures.

    python tools/test.py CONFIG CHECKPOINT --show-dir work_dirs/pictures
    tools/dist_test.sh CONFIG CHECKPOINT GPUS [OPTIONS]

The metrics go to the screen and to WORK_DIR/TIME/TIME.json.
"""

import argparse
import os.path as osp
import sys
from pathlib import Path

import mmengine
import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.utils import apply_to

# A script has only its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mmvisiongru.config import get_config, parts, type_name
from mmvisiongru.errors import InputError
from mmvisiongru.inference import optimize_for_inference
from mmvisiongru.launch.options import add_common_options, add_config_options, at_least_one, one_line_errors
from mmvisiongru.launch.prepare import TESTING, merge_common_options, prepare_test
from tools.outputs import check_output, counted, data_folders, output_paths, write_picture
from tools.visualization.drawing import as_rgb, draw_sample

# Metrics of mmseg that write predictions in a form of their own.
WRITING_METRICS = ('CityscapesMetric', 'DepthMetric')
# Metrics that write predictions to a .pkl, for scopes that have no maps to write.
DUMPING = dict(mmpretrain='DumpResults', mmdet='DumpDetResults')


def parse_args(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Test a classifier, segmentor or detector.')
    add_config_options(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out',
        metavar='PATH',
        help='write the predictions to this folder as PNG (segmentation) or to this .pkl (others)',
    )
    parser.add_argument(
        '--out-item',
        choices=['pred', 'metrics'],
        default='pred',
        help='what --out writes; metrics go to a .json, .yaml or .pkl',
    )
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument(
        '--show-dir',
        metavar='DIR',
        help='write pictures of the predictions to this folder',
    )
    parser.add_argument('--wait-time', type=float, default=2, help='seconds to show each window')
    parser.add_argument('--interval', type=at_least_one, default=1, help='show every n-th image')
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation with tta_model and tta_pipeline of the config; without a tta_pipeline '
        'each image is tested plain and mirrored',
    )
    parser.add_argument(
        '--no-optimize', action='store_true', help='on a CPU: keep the layers that training uses, to compare'
    )
    add_common_options(parser)
    return parser.parse_args(argv)


def merge_args(cfg: Config, args) -> list[Hook]:
    """Merge the command line into the config. Returns the hooks that write what it asks for."""
    merge_common_options(cfg, args)
    if args.amp:
        # float16 on a GPU, and on a CPU bfloat16.
        cfg.test_cfg.fp16 = True
    if args.tta:
        merge_tta(cfg)
    hooks = merge_show(cfg, args) if args.show or args.show_dir else []
    if args.out_item == 'metrics':
        if not (args.out or '').endswith(('.json', '.yaml', '.yml', '.pkl')):
            raise InputError(f'--out-item metrics needs --out PATH in .json, .yaml or .pkl, got {args.out}')
        check_output(osp.dirname(args.out) or '.', data_folders(cfg))
    elif args.out:
        hooks += merge_out(cfg, args.out)
    return hooks


def merge_show(cfg: Config, args) -> list[Hook]:
    """Let a hook draw the predictions in place of mmseg's or mmpretrain's."""
    if args.show_dir:
        check_output(args.show_dir, data_folders(cfg))
    (cfg.get('default_hooks') or {}).pop('visualization', None)
    return [PictureHook(args.show_dir, args.interval, args.show, args.wait_time)]


def merge_tta(cfg: Config) -> None:
    """Wrap the model for test-time augmentation and take the pipeline that makes the views."""
    scope = cfg.get('default_scope')
    if scope == 'mmdet':
        raise InputError(
            '--tta is for classifiers and segmentors: mmdet merges boxes of several views, but no masks'
        )
    kind = 'mmpretrain.AverageClsScoreTTA' if scope == 'mmpretrain' else 'mmseg.SegTTAModel'
    cfg.setdefault('tta_model', dict(type=kind))
    if cfg.model.type != cfg.tta_model.type:
        cfg.model = dict(cfg.tta_model, module=cfg.model)
    # Those inside ConcatDataset and the like have pipelines of their own.
    for _, node in parts(cfg, 'test_dataloader'):
        if 'pipeline' in node:
            node['pipeline'] = cfg.get('tta_pipeline') or flip_pipeline(node['pipeline'])


def flip_pipeline(pipeline: list) -> list:
    """The test pipeline with each image plain and mirrored; its labels stay as they are."""
    loads = [i for i, step in enumerate(pipeline) if type_name(step) == 'LoadAnnotations']
    head, rest = pipeline[: (loads or [-1])[0]], pipeline[(loads or [-1])[0] :]
    flips = [dict(type='RandomFlip', prob=probability) for probability in (0.0, 1.0)]
    return [*head, dict(type='TestTimeAug', transforms=[flips, *([step] for step in rest)])]


def merge_out(cfg: Config, out: str) -> list[Hook]:
    """Let a metric or a hook write predictions in the form that is customary for the task."""
    metrics = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    if dumping := DUMPING.get(cfg.get('default_scope')):
        if not out.endswith(('.pkl', '.pickle')):
            raise InputError(f'--out of a classifier or detector must end in .pkl, got {out}')
        check_output(osp.dirname(out) or '.', data_folders(cfg))
        cfg.test_evaluator = [*metrics, dict(type=dumping, out_file_path=out)]
        return []
    check_output(out, data_folders(cfg))
    for metric in (m for m in metrics if type_name(m) in WRITING_METRICS):
        metric['output_dir'] = out
    # IoUMetric would write a/0.png and b/0.png to one file.
    cfg.test_evaluator = [m for m in metrics if not m.get('format_only') or type_name(m) in WRITING_METRICS]
    return [] if any(type_name(m) in WRITING_METRICS for m in metrics) else [LabelMapHook(out)]


class PictureHook(Hook):
    """Draws every ``interval``-th image of a test with truth and prediction.

    The pictures lie below ``out_dir``, if it is given, as the images do below the folder that all of them are
    in. Each process draws those that it tests; with ``show`` the first shows its own for ``wait_time`` s.
    """

    def __init__(self, out_dir: str | None, interval: int = 1, show: bool = False, wait_time: float = 0):
        self.out_dir, self.interval, self.show, self.wait_time = out_dir, interval, show, wait_time

    def before_test(self, runner) -> None:
        """Settle which images are drawn, and the file of each."""
        images = _images(runner)
        self.drawn = set(images[:: self.interval])
        self.paths = output_paths(images, self.out_dir) if self.out_dir else {}

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Draw images of a batch."""
        meta = runner.test_loop.dataloader.dataset.metainfo
        for image, sample in zip(_plain_view(data_batch), outputs, strict=True):
            if sample.img_path not in self.drawn:
                continue
            picture = draw_sample(as_rgb(image), sample, meta.get('classes'), meta.get('palette'))
            if self.out_dir:
                write_picture(self.paths[sample.img_path], picture)
            if self.show and is_main_process():
                runner.visualizer.show(picture, sample.img_path, self.wait_time)

    def after_test(self, runner) -> None:
        """Say where the pictures are."""
        if self.out_dir:
            runner.logger.info(f'{counted(len(self.drawn), "picture")} in {self.out_dir}')


class LabelMapHook(Hook):
    """Writes the classes that a segmentor predicts as PNG, numbered as in the files of the data set.

    The maps lie below ``out_dir`` as the pictures of :class:`PictureHook` do.
    """

    def __init__(self, out_dir: str):
        self.out_dir = out_dir

    def before_test(self, runner) -> None:
        """Settle the file of each image."""
        self.paths = output_paths(_images(runner), self.out_dir)
        # Where the classes are some of those in the files, they are numbered anew.
        mapping = runner.test_loop.dataloader.dataset.metainfo.get('label_map') or {}
        self.numbers = np.arange(2**16, dtype=np.uint16)
        for old, new in mapping.items():
            if new != 255:
                self.numbers[new] = old

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Write the maps of a batch."""
        for sample in outputs:
            labels = sample.pred_sem_seg.data.squeeze(0).cpu().numpy().astype(np.uint16)
            labels = self.numbers[labels] + bool(sample.get('reduce_zero_label'))
            labels = labels if labels.max() > 255 else labels.astype(np.uint8)
            write_picture(self.paths[sample.img_path], labels)

    def after_test(self, runner) -> None:
        """Say where the maps are."""
        runner.logger.info(f'{counted(len(self.paths), "label map")} in {self.out_dir}')


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


def main(argv=None):
    """Test."""
    args = parse_args(argv)
    with one_line_errors(args.debug):
        cfg = get_config(args.config, args.cfg_options, TESTING)
        hooks = merge_args(cfg, args)
        runner = prepare_test(cfg, args.checkpoint)
        for hook in hooks:
            runner.register_hook(hook)
        if get_device() == 'cpu' and not args.no_optimize:
            optimize_for_inference(runner.model)
        metrics = runner.test()
        if args.out_item == 'metrics' and is_main_process():
            # YAML has no numbers of NumPy.
            plain = apply_to(metrics, lambda x: isinstance(x, np.generic), lambda x: x.item())
            mmengine.dump(plain, args.out)


if __name__ == '__main__':
    main()
