"""Export a trained classifier or segmentor to ONNX, for images of any size, and check it against torch.

    python tools/deployment/export.py CONFIG CHECKPOINT model.onnx
    python tools/deployment/export.py CONFIG CHECKPOINT model.onnx --int8 --eval

The file takes 'images': RGB, float32, (B, 3, H, W), 0 to 255; it normalises them itself. docs/deployment.md
says how to run it.
"""

import argparse
import os.path as osp
import time
from contextlib import ExitStack

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmvisiongru.checkpoint import Checkpoint, check_weights, load_weights, read_checkpoint
from mmvisiongru.deployment import check_stack
from mmvisiongru.errors import InputError
from mmvisiongru.files import check_folder, new_file
from mmvisiongru.launch.options import add_config_options, one_line_errors
from mmvisiongru.launch.prepare import build_runner, building, prepare_config


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_options(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('out', metavar='OUT.onnx', help='the file to write')
    parser.add_argument(
        '--output',
        nargs='+',
        help='what the graph computes (default: labels for a segmentor, scores for a classifier)',
    )
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='take only one image of this size (default: any size)',
    )
    parser.add_argument(
        '--int8',
        action='store_true',
        help='also write OUT.int8.onnx, whose matrix products have weights in 8 bits',
    )
    parser.add_argument(
        '--eval', action='store_true', help="evaluate torch and the files on the config's test set"
    )
    return parser.parse_args(argv)


def build(cfg: Config, checkpoint: Checkpoint):
    """The model with its weights and data preprocessor."""
    init_default_scope(cfg.default_scope)
    settings = dict(cfg.model)
    # As mmengine's Runner does: mmpretrain keeps it beside the model.
    settings.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    with building(cfg):
        model = MODELS.build(settings)
    load_weights(model, checkpoint)
    return model


def write(args, cfg: Config, checkpoint: Checkpoint) -> dict[str, str]:
    """Export, verify and quantise. Returns the files by the name of what runs them."""
    from mmvisiongru.deployment.describe import describe
    from mmvisiongru.deployment.export import PER_BATCH, export, quantize, save
    from mmvisiongru.deployment.runtimes import onnx_runtime
    from mmvisiongru.deployment.verify import SHAPES, loss, verify
    from mmvisiongru.deployment.wrapper import Deployed

    segmentor = cfg.default_scope != 'mmpretrain'
    outputs = args.output or (['labels'] if segmentor else ['scores'])
    model = Deployed(build(cfg, checkpoint), segmentor, outputs)
    entries, notes = describe(cfg, checkpoint.meta, model, args.shape)
    for note in notes:
        print(f'note: {note}')

    start = time.perf_counter()
    proto = export(model, outputs, args.shape)
    seconds = time.perf_counter() - start
    shapes = [(1, 3, *args.shape)] if args.shape else SHAPES
    quantised = f'{osp.splitext(args.out)[0]}.int8.onnx'
    with ExitStack() as files:
        path = files.enter_context(new_file(args.out))
        save(proto, path, entries)
        run = onnx_runtime(path)
        error = verify(model, run, shapes)
        print(f'{args.out}: {len(proto.graph.node)} nodes in {seconds:.0f} s, {", ".join(outputs)}')
        print(
            f'differs from torch by {error:.1e} of the largest value at most, for images '
            + ', '.join('x'.join(map(str, shape)) for shape in shapes)
        )
        if args.int8:
            smaller = files.enter_context(new_file(quantised))
            quantize(path, smaller)
            size = (1, 3, *(args.shape or (224, 224)))
            print(f'{quantised}: {loss(run, onnx_runtime(smaller), size)}, random image {size[2]}x{size[3]}')
            print(f'note: {PER_BATCH}')
    return {'ONNX Runtime': args.out} | ({'ONNX Runtime, int8': quantised} if args.int8 else {})


def evaluate_files(args, cfg: Config, checkpoint: Checkpoint, files: dict[str, str]) -> None:
    """Print the metrics of torch and of the files in all installed runtimes."""
    from mmvisiongru.deployment.evaluate import evaluate
    from mmvisiongru.deployment.runtimes import has_openvino, onnx_runtime, openvino

    runs = {name: onnx_runtime(path) for name, path in files.items()}
    if has_openvino():
        runs['OpenVINO'] = openvino(args.out)
    cfg.work_dir = osp.join('work_dirs', osp.splitext(osp.basename(args.out))[0])
    cfg.load_from, cfg.resume, cfg.launcher = args.checkpoint, False, 'none'
    # torch refuses persistent_workers without workers.
    if not cfg.test_dataloader.num_workers:
        cfg.test_dataloader.persistent_workers = False
    with building(cfg):
        runner = build_runner(cfg)
    check_weights(runner.model, checkpoint)
    runner.loaded = checkpoint
    table = evaluate(runner, runs)
    names = list(table['torch'])
    print(f'\n{"":20}' + ''.join(f'{name:>16}' for name in names))
    for row, metrics in table.items():
        print(f'{row:20}' + ''.join(f'{metrics[name]:16.2f}' for name in names))


def main(argv=None):
    """Export."""
    args = parse_args(argv)
    with one_line_errors(args.debug):
        check_stack()
        if not args.out.endswith('.onnx'):
            raise InputError(f'the file to write must end in .onnx, got {args.out}')
        data = ('test_dataloader',) if args.eval else ()
        cfg = prepare_config(args, ('model', 'test_dataloader', 'default_scope'), data)
        checkpoint = read_checkpoint(args.checkpoint)
        check_folder(osp.dirname(args.out) or '.')
        files = write(args, cfg, checkpoint)
        if args.eval:
            evaluate_files(args, cfg, checkpoint, files)


if __name__ == '__main__':
    main()
