"""Tables I and II of the paper: VisionGRU and its competitors, counted and measured here.

    python benchmarks/backbones.py --out docs/comparison
    python benchmarks/backbones.py --out docs/comparison_gpu --device cuda --dtype bfloat16

Writes OUT.json and OUT.md. Parameters and FLOPs are counted; time and memory of inference at batch 1 are
measured. Runs of each model are interleaved with runs of VisionGRU-tiny at the same size, so that their
ratio holds on a busy machine, too. Accuracy is not measured but quoted from the model index of mmpretrain and
mmseg, or from the source in the row. About 10 minutes on two CPU cores.
"""

import argparse
import json
import os.path as osp
import statistics
import sys
from functools import partial
from logging import ERROR
from pathlib import Path

import mmseg
import torch
import yaml
from mmengine.logging import MMLogger
from mmpretrain import ModelHub

# A script has only its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.models import build_for_inference
from mmvisiongru import measure
from mmvisiongru.files import check_folder, write_text
from mmvisiongru.launch.options import one_line_errors
from mmvisiongru.models.layers.precision import converted_once
from mmvisiongru.zoo import build_model, model_config
from tools.analysis_tools.benchmark import PRECISIONS, PRECISIONS_HELP, in_precision
from tools.analysis_tools.flops import count, image_size
from tools.outputs import stem

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
# The first model of a task is the reference of the time ratios.
MODELS = dict(
    classification={
        'VisionGRU-tiny': str(CONFIGS / 'classification/visiongru-tiny_8xb128_in1k.py'),
        'VisionGRU-base': str(CONFIGS / 'classification/visiongru-base_8xb128_in1k.py'),
        'VRWKV-T': str(CONFIGS / 'classification/vrwkv-tiny_8xb128_in1k.py'),
        'VRWKV-S': str(CONFIGS / 'classification/vrwkv-small_8xb128_in1k.py'),
        'VRWKV-B': str(CONFIGS / 'classification/vrwkv-base_8xb128_in1k.py'),
        'VGG-11': 'vgg11_8xb32_in1k',
        'ResNet-18': 'resnet18_8xb32_in1k',
        'ResNet-50': 'resnet50_8xb32_in1k',
        'ResNet-101': 'resnet101_8xb32_in1k',
        'ResNet-152': 'resnet152_8xb32_in1k',
        'ResNeXt-50 32x4d': 'resnext50-32x4d_8xb32_in1k',
        'ViT-B/16 (pre-trained on ImageNet-21k)': 'vit-base-p16_in21k-pre_3rdparty_in1k-384px',
        'ViT-L/16 (pre-trained on ImageNet-21k)': 'vit-large-p16_in21k-pre_3rdparty_in1k-384px',
        'DeiT-Ti': 'deit-tiny_4xb256_in1k',
        'DeiT-S': 'deit-small_4xb256_in1k',
        'DeiT-B': 'deit-base_16xb64_in1k',
        'Swin-T': 'swin-tiny_16xb64_in1k',
        'ConvNeXt-T': 'convnext-tiny_32xb128_in1k',
    },
    segmentation={
        'UperNet VisionGRU-tiny': str(
            CONFIGS / 'segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py'
        ),
        'UperNet VRWKV-T with adapter': str(
            CONFIGS / 'segmentation/vrwkv-tiny-adapter_upernet_8xb2-160k_ade20k-512x512.py'
        ),
        'UperNet VRWKV-S with adapter': str(
            CONFIGS / 'segmentation/vrwkv-small-adapter_upernet_8xb2-160k_ade20k-512x512.py'
        ),
        'DeepLabv3+ ResNet-101': 'deeplabv3plus_r101-d8_4xb4-160k_ade20k-512x512',
        'UperNet ResNet-50': 'upernet_r50_4xb4-160k_ade20k-512x512',
        'UperNet DeiT-S': 'vit_deit-s16_upernet_8xb2-160k_ade20k-512x512',
        'UperNet Swin-T': 'swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512',
    },
)
# Models that no installed library has: parameters in millions, GMACs (None: not in the source), accuracy,
# source.
QUOTED = dict(
    classification={
        'RegNetY-4GF': (20.6, 4.0, 79.4, 'MODEL_ZOO.md of facebookresearch/pycls'),
        'S4ND-ViT-B': (89, 17.1, 80.4, 'arXiv:2401.10166'),
        'Vim-Ti': (7, None, 76.1, 'README of hustvl/Vim'),
        'Vim-S': (26, None, 80.5, 'README of hustvl/Vim'),
    },
    segmentation={
        'UperNet Vim-Ti': (13, None, 41.0, 'arXiv:2401.09417, table 2'),
        'UperNet Vim-S': (46, None, 44.9, 'arXiv:2401.09417, table 2'),
    },
)
METRIC = dict(classification='Top 1 Accuracy', segmentation='mIoU')
QUOTED_SIZE = dict(classification=(224, 224), segmentation=(512, 512))


def quoted_accuracy(key: str, task: str) -> tuple[float | None, str]:
    """Accuracy of a model and the source that reports it."""
    if not key.endswith('.py'):
        entry = mmseg_entry(key) if task == 'segmentation' else ModelHub.get(key).results[0].metrics
        library = 'mmseg' if task == 'segmentation' else 'mmpretrain'
        return entry.get(METRIC[task]), f'model index of {library}'
    index = yaml.safe_load((CONFIGS / task / 'metafile.yml').read_text(encoding='utf-8'))
    entry = next(m for m in index['Models'] if m['Name'] == Path(key).stem)
    paper = next(c['Paper']['URL'] for c in index['Collections'] if c['Name'] == entry['In Collection'])
    return entry['Results'][0]['Metrics'][f'{METRIC[task]} (paper)'], paper.replace(
        'https://arxiv.org/abs/', 'arXiv:'
    )


def mmseg_entry(name: str) -> dict:
    """Metrics of a model in mmseg's model index."""
    folder = Path(mmseg.__file__).parent / '.mim/configs'
    (config,) = folder.rglob(f'{name}.py')
    found = {}
    for metafile in config.parent.glob('metafile.y*ml'):
        # Where two entries have the same name, the first has a shorter schedule: its weights' name says so.
        for entry in yaml.safe_load(metafile.read_text(encoding='utf-8'))['Models']:
            if entry['Name'] == name:
                found = entry['Results']
    return (found[0] if isinstance(found, list) else found)['Metrics']


def measure_model(name: str, task: str, reference, device, precision: str, repeats: int) -> dict:
    """Count one model and measure it, interleaved with the reference."""
    key = MODELS[task][name]
    cfg = model_config(key)
    model, size = build_for_inference(cfg, device), image_size(cfg)
    x = torch.randn(1, 3, *size, device=device)
    runs = dict(
        this=partial(measure.inference, *in_precision(model, x, precision)),
        reference=partial(measure.inference, *in_precision(reference, x, precision)),
    )
    with converted_once():
        times = measure.interleaved_times(runs, device, repeats)
    memory = measure.peak_memory(runs['this'], device)
    times = {run: statistics.median(t) for run, t in times.items()}
    accuracy, source = quoted_accuracy(key, task)
    return dict(
        task=task,
        model=name,
        size=size,
        **count(build_model(cfg).to('meta'), size),
        latency_ms=1e3 * times['this'],
        time_ratio=times['this'] / times['reference'],
        peak_memory_mb=memory / 2**20,
        accuracy=accuracy,
        source=source,
    )


def quoted_rows(task: str) -> list[dict]:
    """Rows of the models that no installed library has."""
    rows = []
    for name, (millions, gmacs, accuracy, source) in QUOTED[task].items():
        row = dict(task=task, model=name, size=QUOTED_SIZE[task], accuracy=accuracy, source=source)
        rows.append(row | dict(parameters=millions * 1e6, macs=gmacs and gmacs * 1e9))
    return rows


def compare(device: torch.device, precision: str, repeats: int) -> list[dict]:
    """Rows of both tables."""
    rows = []
    with measure.progress_bar() as bar:
        progress = bar.add_task('', total=sum(map(len, MODELS.values())))
        for task, models in MODELS.items():
            reference = build_for_inference(next(iter(models.values())), device)
            for name in models:
                bar.update(progress, description=name)
                rows.append(measure_model(name, task, reference, device, precision, repeats))
                bar.advance(progress)
            rows += quoted_rows(task)
    return rows


def cell(value: float | None, digits: int) -> str:
    """A number, or nothing."""
    return '' if value is None else f'{value:.{digits}f}'


def markdown(rows: list[dict], machine: dict) -> str:
    """The page with both tables."""
    titles = dict(
        classification=('ImageNet-1k', 'VisionGRU-tiny', 'top-1 (quoted)'),
        segmentation=('ADE20K', 'UperNet VisionGRU-tiny', 'mIoU (quoted)'),
    )
    lines = [
        '# VisionGRU and its competitors',
        '',
        'Written by `benchmarks/backbones.py`.',
        '',
        f'Measured on: {measure.in_words(machine)}.',
        '',
        '- Inference at batch 1, medians. On a CPU all models are converted by `optimize_for_inference`.',
        '- Peak memory is that of a forward pass on top of the weights.',
        '- "time / ..." compares with the reference in interleaved runs. Times of different rows are from',
        '  different minutes and compare less well.',
        '- FLOPs are multiply-accumulates. FLOPs and time of segmentors are without the auxiliary head.',
        "- UperNet of VisionGRU and Vision-RWKV has this package's head, that of the others mmseg's, which",
        '  is slower. [performance.md](performance.md) compares the heads, with Swin-T too.',
        '- **Accuracy is quoted from the source in the last column**, not reached here. Recipes differ.',
        '- Rows marked "not available" are quoted as a whole: no installed library has the model.',
    ]
    for task, (title, reference, accuracy) in titles.items():
        head = ['model', 'image', 'params (M)', 'FLOPs (G)', 'ms', f'time / {reference}', 'peak MB']
        lines += ['', f'## {title}', '', f'| {" | ".join([*head, accuracy, "source"])} |', '|---' * 9 + '|']
        for row in (r for r in rows if r['task'] == task):
            cells = [
                row['model'],
                'x'.join(map(str, row['size'])),
                cell(row['parameters'] / 1e6, 1),
                cell(row['macs'] and row['macs'] / 1e9, 1),
                cell(row.get('latency_ms'), 0) or 'not available',
                cell(row.get('time_ratio'), 2),
                cell(row.get('peak_memory_mb'), 0),
                f'{row["accuracy"]:g}',
                row['source'],
            ]
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=stem, default='work_dirs/comparison', help='write OUT.json and OUT.md')
    measure.add_device_option(parser)
    parser.add_argument('--dtype', choices=PRECISIONS, default='float32', help=PRECISIONS_HELP)
    parser.add_argument(
        '--repeats', type=int, default=5, help='timed runs of each model after an untimed one'
    )
    return parser.parse_args(argv)


@one_line_errors()
def main(argv=None):
    """Measure, then write both files."""
    args = parse_args(argv)
    MMLogger.get_instance('mmengine', log_level=ERROR)
    device = torch.device(args.device)
    check_folder(osp.dirname(args.out) or '.')
    rows = compare(device, args.dtype, args.repeats)
    machine = measure.describe_machine(device) | dict(dtype=args.dtype, repeats=args.repeats)
    page = markdown(rows, machine)
    print(page)
    write_text(f'{args.out}.json', json.dumps(dict(machine=machine, rows=rows), indent=1))
    write_text(f'{args.out}.md', page)


if __name__ == '__main__':
    main()
