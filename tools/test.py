"""Test a classifier (mmpretrain) or a segmentor (mmseg): metrics, predictions, pictures.

    python tools/test.py CONFIG CHECKPOINT --show-dir work_dirs/pictures
    tools/dist_test.sh CONFIG CHECKPOINT GPUS [OPTIONS]

The metrics go to the screen and to WORK_DIR/TIME/TIME.json.
"""

import argparse
import os.path as osp

import mmengine
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process

from mmvisiongru.config import get_config
from mmvisiongru.errors import InputError
from mmvisiongru.inference import optimize_for_inference
from mmvisiongru.launch.options import (
    add_common_options,
    add_config_options,
    at_least_one,
    merge_common_options,
    one_line_errors,
)
from mmvisiongru.launch.prepare import TESTING, prepare_test
from mmvisiongru.outputs import check_output, data_folders

# Metrics of mmseg that write predictions in a form of their own.
WRITING_METRICS = ('CityscapesMetric', 'DepthMetric')


def parse_args(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Test a classifier or a segmentor.')
    add_config_options(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out',
        metavar='PATH',
        help='write the predictions to this folder as PNG (segmentation) or to this .pkl (classification)',
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
        help='write pictures of the predictions to this folder (only the first process does)',
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


def is_classifier(cfg: Config) -> bool:
    """Which of the two tasks a config is for."""
    return cfg.get('default_scope') == 'mmpretrain'


def merge_args(cfg: Config, args) -> None:
    """Merge the command line into the config."""
    merge_common_options(cfg, args)
    if args.amp:
        # float16 on a GPU, and on a CPU bfloat16.
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir:
        merge_show(cfg, args)
    if args.tta:
        merge_tta(cfg)
    if args.out and args.out_item == 'pred':
        merge_out(cfg, args.out)
    elif args.out and not args.out.endswith(('.json', '.yaml', '.yml', '.pkl')):
        raise InputError(f'--out-item metrics needs --out to end in .json, .yaml or .pkl, got {args.out}')
    elif args.out_item == 'metrics' and not args.out:
        raise InputError('--out-item metrics needs --out PATH')


def merge_show(cfg: Config, args) -> None:
    """Let a hook draw the predictions in place of mmseg's or mmpretrain's."""
    if args.show_dir:
        check_output(args.show_dir, data_folders(cfg))
    hook = dict(type='mmvisiongru.PictureHook', out_dir=args.show_dir, interval=args.interval)
    hook |= dict(show=args.show, wait_time=args.wait_time)
    cfg.default_hooks = {**(cfg.get('default_hooks') or {}), 'visualization': hook}


def merge_tta(cfg: Config) -> None:
    """Wrap the model for test-time augmentation and take the pipeline that makes the views."""
    kind = 'mmpretrain.AverageClsScoreTTA' if is_classifier(cfg) else 'mmseg.SegTTAModel'
    cfg.setdefault('tta_model', dict(type=kind))
    cfg.setdefault('tta_pipeline', flip_pipeline(cfg.test_dataloader.dataset.pipeline))
    if cfg.model.type != cfg.tta_model.type:
        cfg.model = dict(cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def flip_pipeline(pipeline: list) -> list:
    """The test pipeline with each image plain and mirrored; its labels stay as they are."""
    loads = [i for i, step in enumerate(pipeline) if step['type'] == 'LoadAnnotations']
    head, rest = pipeline[: (loads or [-1])[0]], pipeline[(loads or [-1])[0] :]
    flips = [dict(type='RandomFlip', prob=probability) for probability in (0.0, 1.0)]
    return [*head, dict(type='TestTimeAug', transforms=[flips, *([step] for step in rest)])]


def merge_out(cfg: Config, out: str) -> None:
    """Write predictions in the form that is customary for the task."""
    metrics = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    if is_classifier(cfg):
        if not out.endswith(('.pkl', '.pickle')):
            raise InputError(f'--out of a classifier must end in .pkl, got {out}')
        check_output(osp.dirname(out) or '.', data_folders(cfg))
        cfg.test_evaluator = [*metrics, dict(type='DumpResults', out_file_path=out)]
        return
    check_output(out, data_folders(cfg))
    for metric in (m for m in metrics if m['type'] in WRITING_METRICS):
        metric['output_dir'] = out
    # IoUMetric would write a/0.png and b/0.png to one file.
    cfg.test_evaluator = [m for m in metrics if not m.get('format_only') or m['type'] in WRITING_METRICS]
    if not any(m['type'] in WRITING_METRICS for m in metrics):
        cfg.custom_hooks = [
            *(cfg.get('custom_hooks') or []),
            dict(type='mmvisiongru.LabelMapHook', out_dir=out),
        ]


def main(argv=None):
    """Test."""
    args = parse_args(argv)
    with one_line_errors(args.debug):
        cfg = get_config(args.config, args.cfg_options, TESTING)
        merge_args(cfg, args)
        runner = prepare_test(cfg, args.checkpoint)
        if get_device() == 'cpu' and not args.no_optimize:
            optimize_for_inference(runner.model)
        metrics = runner.test()
        if args.out_item == 'metrics' and is_main_process():
            mmengine.dump(metrics, args.out)


if __name__ == '__main__':
    main()
