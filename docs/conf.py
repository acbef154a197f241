"""Settings of the documentation site; `docs/make` builds it."""

import json
import re
import sys
from pathlib import Path

import yaml

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

project = 'mmvisiongru'
author = 'The mmvisiongru maintainers'
release = re.search(r"'(.+)'", (ROOT / 'mmvisiongru' / 'version.py').read_text(encoding='utf-8'))[1]
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.intersphinx']
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = f'mmvisiongru {release}'
html_static_path = ['_static']
html_css_files = ['site.css']
myst_heading_anchors = 3
myst_enable_extensions = ['dollarmath']
autodoc_typehints = 'none'
autodoc_member_order = 'bysource'
# Nothing is fetched while building: links to other projects stay plain names.
intersphinx_mapping = {}


def model_zoo() -> str:
    """The page of all configs, from the metafiles."""
    lines = ['# Model zoo', '', 'Generated from the `metafile.yml` of each folder of `configs`.', '']
    for folder in ('classification', 'segmentation', 'detection', 'ablations', 'peers'):
        index = yaml.safe_load((ROOT / 'configs' / folder / 'metafile.yml').read_text(encoding='utf-8'))
        lines += [f'## {folder.capitalize()}', '']
        lines += [
            '| config | image | params (M) | FLOPs (G) | metric | weights |',
            '|---|---|---|---|---|---|',
        ]
        for entry in index['Models']:
            metadata = entry['Metadata']
            metrics = {k: v for result in entry.get('Results', []) for k, v in result['Metrics'].items()}
            cells = (
                f'`{entry["Name"]}`',
                metadata['Image Size'],
                f'{metadata["Parameters"] / 1e6:.2f}',
                f'{metadata["FLOPs"] / 1e9:.3g}',
                ', '.join(f'{name}: {value}' for name, value in metrics.items()),
                f'`{Path(entry["Weights"]).stem}`' if 'Weights' in entry else '',
            )
            lines.append(f'| {" | ".join(cells)} |')
        lines.append('')
    lines.append('"(paper)" marks quoted figures: VisionGRU from arXiv:2412.18178, Vision-RWKV from')
    lines.append('arXiv:2403.02308, Swin-T from mmdetection.')
    return '\n'.join(lines) + '\n'


def tutorial() -> str:
    """The page of the notebook: its cells."""
    cells = json.loads((DOCS / 'tutorial.ipynb').read_text(encoding='utf-8'))['cells']
    texts = [(cell['cell_type'], ''.join(cell['source'])) for cell in cells]
    blocks = [text if kind == 'markdown' else f'```python\n{text}\n```' for kind, text in texts]
    blocks.append('{download}`Download the notebook <tutorial.ipynb>`.')
    return '\n\n'.join(blocks) + '\n'


def link_to_repository(app, docname, source) -> None:
    """Show links to files outside of the site by their path: the site does not carry them."""
    source[0] = re.sub(r'\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)', _as_path, source[0])


def _as_path(match: re.Match) -> str:
    text, path = match[1].strip('`'), match[2]
    if path.startswith('docs/'):
        return match[0]
    return f'`{path}`' if text in (path, Path(path).name) else f'{match[1]} (`{path}`)'


def setup(app) -> None:
    """Write the generated pages, and rewrite links while pages are read."""
    (DOCS / 'model_zoo.md').write_text(model_zoo(), encoding='utf-8')
    (DOCS / 'tutorial.md').write_text(tutorial(), encoding='utf-8')
    app.connect('source-read', link_to_repository)
