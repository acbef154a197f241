"""Update the model zoo: `metafile.yml` and the table in `README.md` of each folder of configs.

    python tools/misc/update_model_zoo.py
    python tools/misc/update_model_zoo.py --check

Every config gets an entry with parameters and FLOPs as tools/analysis_tools/get_flops.py counts them, for the
image size of the config. Accuracy is written by hand, under `Metrics`, as `Top 1 Accuracy (paper)` if it is
quoted and `Top 1 Accuracy` if it was reached here. The latter, or mIoU, becomes that of the published weights
of the config, whose file is then under `Weights`, or the mean over the seeds in experiments/evidence if the
config was trained there as it is. Everything else in an entry stays. `--check` writes nothing and ends with
exit code 1 if something would change.
"""

import argparse
import csv
import statistics
import sys
from functools import cache
from logging import ERROR
from pathlib import Path

import yaml
from mmengine.logging import MMLogger

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmvisiongru.checkpoint import load_checkpoint_file, published_weights
from mmvisiongru.launch.options import one_line_errors
from mmvisiongru.zoo import build_model, model_config
from tools.analysis_tools.flops import count, image_size

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ('classification', 'segmentation', 'detection', 'ablations', 'peers')
METRICS = {'Top 1 Accuracy': 'top-1', 'mIoU': 'mIoU', 'box AP': 'box AP', 'mask AP': 'mask AP'}
# Those that are updated: the AP of a log is a share, and of boxes.
UPDATED = ('Top 1 Accuracy', 'mIoU')
BEGIN, END = '<!-- table: tools/misc/update_model_zoo.py -->', '<!-- end of table -->'


def update_entries(entries: list[dict], configs: list[str], collections: list[dict]) -> list[dict]:
    """One entry per config, in the order of the configs."""
    known = {entry['Config']: entry for entry in entries}
    updated = []
    for config in configs:
        entry = known.get(config) or new_entry(config, collections)
        path, value = published().get(entry['Name'], (None, None))
        value = trained(entry['Name']) if path is None else value
        for result in entry.get('Results', []):
            metrics = result['Metrics']
            metrics.update((name, value) for name in UPDATED if value is not None and name in metrics)
        entry = entry | ({'Weights': str(path.relative_to(ROOT))} if path else {})
        updated.append(entry | {'Metadata': entry.get('Metadata', {}) | counted(config)})
    return updated


@cache
def published() -> dict[str, tuple[Path, float]]:
    """File and metric of the published weights by the config that they are for."""
    metas = {path: load_checkpoint_file(str(path))['meta'] for path in published_weights().values()}
    return {meta['config']: (path, next(iter(meta['metric'].values()))) for path, meta in metas.items()}


def trained(name: str) -> float | None:
    """Mean over seeds of what a config reached in experiments/evidence without further options."""
    for file in sorted((ROOT / 'experiments/evidence').glob('*/configs.csv')):
        configs = csv.DictReader(file.read_text(encoding='utf-8').splitlines())
        if any(row['config'] == name and not row['options'] for row in configs):
            runs = csv.DictReader((file.parent / 'results.csv').read_text(encoding='utf-8').splitlines())
            return round(statistics.fmean(float(run['value']) for run in runs if run['config'] == name), 1)
    return None


def new_entry(config: str, collections: list[dict]) -> dict:
    """Entry of an unlisted config, in the collection whose model is in its name, or in the first."""
    name = Path(config).stem
    models = {Path(c['Code']['URL']).stem: c['Name'] for c in collections}
    collection = next((c for model, c in models.items() if model in name), collections[0]['Name'])
    return {'Name': name, 'In Collection': collection, 'Config': config}


def counted(config: str) -> dict:
    """Image size, FLOPs and parameters of a config."""
    cfg = model_config(str(ROOT / config))
    size = image_size(cfg)
    # Backbones of mmpretrain cannot be built on the meta device.
    device = 'cpu' if 'peers/' in config or '_swin-' in config else 'meta'
    found = count(build_model(cfg, device=device).to('meta'), size)
    return {
        'Image Size': 'x'.join(map(str, size)),
        'FLOPs': found['macs'],
        'Parameters': found['parameters'],
    }


def table(entries: list[dict]) -> str:
    """Table of the entries in Markdown."""
    lines = [
        '| config | image | params (M) | FLOPs (G) | paper | trained here |',
        '|---|---|---|---|---|---|',
    ]
    for entry in entries:
        metadata, config = entry['Metadata'], entry['Config']
        cells = (
            f'[{entry["Name"]}]({Path(config).name})',
            metadata['Image Size'],
            f'{metadata["Parameters"] / 1e6:.2f}',
            f'{metadata["FLOPs"] / 1e9:.{2 if metadata["FLOPs"] > 1e9 else 4}f}',
            metric(entry, ' (paper)') or '',
            metric(entry, '') or 'not trained here',
        )
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def metric(entry: dict, source: str) -> str:
    """Accuracies of an entry, e.g. '82.0 top-1'."""
    return ', '.join(
        f'{result["Metrics"][name + source]} {label}'
        for result in entry.get('Results', [])
        for name, label in METRICS.items()
        if name + source in result['Metrics']
    )


def update(folder: str) -> dict[Path, str]:
    """Updated text of the metafile and the README of a folder."""
    metafile, readme = (ROOT / 'configs' / folder / name for name in ('metafile.yml', 'README.md'))
    configs = sorted(str(p.relative_to(ROOT)) for p in metafile.parent.glob('*.py'))
    index = yaml.safe_load(metafile.read_text(encoding='utf-8'))
    index['Models'] = update_entries(index['Models'] or [], configs, index['Collections'])
    before, rest = readme.read_text(encoding='utf-8').split(BEGIN)
    text = f'{before}{BEGIN}\n\n{table(index["Models"])}\n\n{END}{rest.split(END)[1]}'
    return {metafile: yaml.safe_dump(index, sort_keys=False, width=120), readme: text}


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='write nothing, only say what would change')
    return parser.parse_args(argv)


def main(argv=None) -> int:
    """Update or check all folders."""
    args = parse_args(argv)
    MMLogger.get_instance('mmengine', log_level=ERROR)
    with one_line_errors():
        updated = [item for folder in FOLDERS for item in update(folder).items()]
    changed = {path: text for path, text in updated if path.read_text(encoding='utf-8') != text}
    for path, text in changed.items():
        print(path.relative_to(ROOT), 'is out of date' if args.check else 'updated')
        if not args.check:
            path.write_text(text, encoding='utf-8')
    return int(args.check and bool(changed))


if __name__ == '__main__':
    sys.exit(main())
