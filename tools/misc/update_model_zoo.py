"""Bring the model zoo up to date: `metafile.yml` and the table in `README.md` of each folder of configs.

    python tools/misc/update_model_zoo.py
    python tools/misc/update_model_zoo.py --check

Every config gets an entry with parameters and FLOPs as tools/analysis_tools/get_flops.py counts them, for the
image size of the config. Results and all else that an entry holds are kept as they are: accuracy is written
by hand, under `Metrics`, as `Top 1 Accuracy (paper)` where it is quoted and `Top 1 Accuracy` where it was
reached here. `--check` writes nothing and ends with exit code 1 if something would change.
"""

import argparse
import sys
from logging import ERROR
from pathlib import Path

import yaml
from mmengine.logging import MMLogger

from mmvisiongru.flops import count
from mmvisiongru.zoo import build_model, image_size, model_config

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ('classification', 'segmentation', 'ablations', 'peers')
METRICS = ('Top 1 Accuracy', 'mIoU')
BEGIN, END = '<!-- table: tools/misc/update_model_zoo.py -->', '<!-- end of table -->'


def update_entries(entries: list[dict], configs: list[str], collections: list[dict]) -> list[dict]:
    """One entry a config, in the order of the configs; what is not counted stays."""
    known = {entry['Config']: entry for entry in entries}
    updated = []
    for config in configs:
        entry = known.get(config, new_entry(config, collections))
        updated.append(entry | {'Metadata': entry.get('Metadata', {}) | counted(config)})
    return updated


def new_entry(config: str, collections: list[dict]) -> dict:
    """Entry of a config that is not listed yet, in the collection whose model it names, or in the first."""
    name = Path(config).stem
    models = {Path(c['Code']['URL']).stem: c['Name'] for c in collections}
    collection = next((c for model, c in models.items() if name.startswith(model)), collections[0]['Name'])
    return {'Name': name, 'In Collection': collection, 'Config': config}


def counted(config: str) -> dict:
    """What get_flops.py says of a config."""
    cfg = model_config(str(ROOT / config))
    size = image_size(cfg)
    # Backbones of mmpretrain cannot be built on the meta device.
    device = 'cpu' if 'peers/' in config else 'meta'
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
    labels = dict(zip(METRICS, ('top-1', 'mIoU'), strict=True))
    return ', '.join(
        f'{result["Metrics"][name + source]} {label}'
        for result in entry.get('Results', [])
        for name, label in labels.items()
        if name + source in result['Metrics']
    )


def update(folder: str) -> dict[Path, str]:
    """Text of the metafile and the README of a folder, brought up to date."""
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
    changed = {
        path: text
        for f in FOLDERS
        for path, text in update(f).items()
        if path.read_text(encoding='utf-8') != text
    }
    for path, text in changed.items():
        print(path.relative_to(ROOT), 'is out of date' if args.check else 'updated')
        if not args.check:
            path.write_text(text, encoding='utf-8')
    return int(args.check and bool(changed))


if __name__ == '__main__':
    sys.exit(main())
