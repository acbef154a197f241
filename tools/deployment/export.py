"""Export a trained classifier or segmentor to ONNX, for images of any size, and check it against torch.

    python tools/deployment/export.py CONFIG CHECKPOINT model.onnx
    python tools/deployment/export.py CONFIG CHECKPOINT model.onnx --int8 --eval
    python tools/deployment/export.py CONFIG CHECKPOINT model.onnx --web work_dirs/web --sample IMAGE

The file takes 'images': RGB, float32, (B, 3, H, W), 0 to 255; it normalises them itself. docs/deployment.md
says how to run it.
"""

import argparse
import html
import json
import os.path as osp
import shlex
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from string import Template

from mmengine.config import Config

# A script has only its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmvisiongru.checkpoint import Checkpoint, load_weights, read_checkpoint
from mmvisiongru.deployment import check_stack
from mmvisiongru.errors import InputError
from mmvisiongru.files import check_folder, new_file, write_text
from mmvisiongru.launch.options import add_config_options, one_line_errors
from mmvisiongru.launch.prepare import build_runner, building, prepare_config
from mmvisiongru.zoo import build_model

# The page that runs a file in a browser.
WEB = Path(__file__).resolve().parent / 'web'
# Where `npm install onnxruntime-web` puts it.
RUNTIME = './node_modules/onnxruntime-web/dist/ort.wasm.min.mjs'


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
    parser.add_argument('--web', metavar='DIR', help='also write a web page that runs the file in a browser')
    parser.add_argument('--sample', metavar='IMAGE', help='an image that the page offers to try')
    parser.add_argument(
        '--runtime',
        metavar='URL',
        default=RUNTIME,
        help='the ort.wasm.min.mjs of onnxruntime-web for the page (default: from npm install in DIR)',
    )
    return parser.parse_args(argv)


def write(args, cfg: Config, checkpoint: Checkpoint) -> dict[str, str]:
    """Export, verify and quantise. Returns the files by the name of what runs them."""
    from mmvisiongru.deployment.export import export
    from mmvisiongru.deployment.verify import SHAPES, verify
    from mmvisiongru.deployment.wrapper import Deployed
    from tools.deployment.describe import describe
    from tools.deployment.evaluate import loss
    from tools.deployment.files import PER_BATCH, quantize, save
    from tools.deployment.runtimes import onnx_runtime

    segmentor = cfg.default_scope != 'mmpretrain'
    outputs = args.output or (['labels'] if segmentor else ['scores'])
    model = build_model(cfg)
    load_weights(model, checkpoint)
    model = Deployed(model, segmentor, outputs)
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


def write_page(folder: str, model: str, sample: str | None, runtime: str) -> None:
    """Write the page and copies of the model and the sample, and print how to open it."""
    name = f'sample{osp.splitext(sample)[1].lower()}' if sample else ''
    files = {'model.onnx': model, 'demo.js': WEB / 'demo.js'} | ({name: sample} if sample else {})
    for target, source in files.items():
        with new_file(osp.join(folder, target)) as path:
            shutil.copyfile(source, path)
    page = Template((WEB / 'index.html').read_text(encoding='utf-8'))
    text = page.substitute(runtime=json.dumps(runtime), sample=html.escape(name))
    write_text(osp.join(folder, 'index.html'), text)
    needs_runtime = runtime == RUNTIME and not Path(folder, RUNTIME).exists()
    folder = shlex.quote(folder)
    if needs_runtime:
        print(f'npm install --prefix {folder} onnxruntime-web')
    print(f'python -m http.server --bind 127.0.0.1 --directory {folder}   # then open http://127.0.0.1:8000')


def evaluate_files(args, cfg: Config, checkpoint: Checkpoint, files: dict[str, str]) -> None:
    """Print the metrics of torch and of the files in all installed runtimes."""
    from tools.deployment.evaluate import evaluate
    from tools.deployment.runtimes import has_openvino, onnx_runtime, openvino

    runs = {name: onnx_runtime(path) for name, path in files.items()}
    if has_openvino():
        runs['OpenVINO'] = openvino(args.out)
    cfg.work_dir = osp.join('work_dirs', osp.splitext(osp.basename(args.out))[0])
    cfg.load_from, cfg.resume, cfg.launcher = args.checkpoint, False, 'none'
    if args.shape:
        cfg.test_dataloader.batch_size = 1
    # torch refuses persistent_workers without workers.
    if not cfg.test_dataloader.num_workers:
        cfg.test_dataloader.persistent_workers = False
    with building(cfg):
        runner = build_runner(cfg)
        first = runner.test_dataloader.dataset[0]['inputs'][None].float().numpy()
    # Rather than fail after the evaluation of torch.
    runs['ONNX Runtime'](first)
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
        if args.shape and min(args.shape) < 1:
            raise InputError(f'--shape must be positive, got {" x ".join(map(str, args.shape))}')
        if args.sample and not osp.isfile(args.sample):
            raise InputError(f'--sample {args.sample} does not exist')
        data = ('test_dataloader',) if args.eval else ()
        cfg = prepare_config(args, ('model', 'test_dataloader', 'default_scope'), data)
        if cfg.default_scope not in ('mmpretrain', 'mmseg'):
            raise InputError(f'classifiers and segmentors are exported, no models of {cfg.default_scope}')
        checkpoint = read_checkpoint(args.checkpoint)
        for folder in filter(None, (osp.dirname(args.out) or '.', args.web)):
            check_folder(folder)
        page = Path(args.web or '.', 'index.html')
        if args.web and page.exists() and 'demo.js' not in page.read_text(encoding='utf-8', errors='replace'):
            raise InputError(f'{page} exists and was not written by this tool; choose another folder')
        files = write(args, cfg, checkpoint)
        if args.web:
            write_page(args.web, args.out, args.sample, args.runtime)
        if args.eval:
            evaluate_files(args, cfg, checkpoint, files)


if __name__ == '__main__':
    main()
