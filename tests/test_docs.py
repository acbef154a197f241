"""README and docs: the snippets of the README run, and links lead to files."""

import re
from pathlib import Path

import mmseg
import pytest
from mmengine.config import Config

from mmvisiongru.checkpoint import load_checkpoint_file, published_weights
from tests.harness import ROOT
from tests.harness.config_builders import build_model

PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ('*.md', 'docs/*.md', 'configs/*/*.md', 'experiments/**/*.md')
    for path in ROOT.glob(pattern)
)
PYTHON, CONFIG = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)[:2]


def test_the_python_snippet_gives_four_maps():
    values = {}
    # Smaller images take no time.
    exec(PYTHON.replace('512, 512', '64, 64'), values)
    assert [tuple(m.shape) for m in values['maps']] == [(1, 72 << i, 16 >> i, 16 >> i) for i in range(4)]


def test_the_config_snippet_makes_a_segmentor(tmp_path):
    base = Path(mmseg.__file__).parent / '.mim/configs/_base_/models/upernet_swin.py'
    path = tmp_path / 'own.py'
    path.write_text(f"_base_ = '{base}'\ndefault_scope = 'mmseg'\n{CONFIG}")
    model = build_model(Config.fromfile(path))
    assert type(model.backbone).__name__ == 'VisionGRU'
    widths = list(model.backbone.embed_dims)
    assert model.decode_head.in_channels == widths
    assert model.auxiliary_head.in_channels == widths[model.auxiliary_head.in_index]


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_to_files(page):
    text = re.sub(r'```.*?```', '', (ROOT / page).read_text(), flags=re.DOTALL)
    links = [link for link in re.findall(r'\]\(([^)]+)\)', text) if '://' not in link]
    assert [link for link in links if not ((ROOT / page).parent / link.split('#')[0]).exists()] == []


@pytest.mark.parametrize(('name', 'path'), published_weights().items())
def test_the_readme_quotes_the_metric_of_the_published_file(name, path):
    (row,) = [
        line for line in (ROOT / 'README.md').read_text().splitlines() if line.startswith(f'| `{name}` |')
    ]
    ((metric, value),) = load_checkpoint_file(str(path))['meta']['metric'].items()
    assert f'| {value:.2f} {"mIoU" if metric == "mIoU" else "top-1"} |' in row
