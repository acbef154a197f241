"""README and docs: the snippets that the README opens with."""

import re
from pathlib import Path

import mmseg
from mmengine.config import Config

from tests.harness import ROOT
from tests.harness.config_builders import build_model

PYTHON, CONFIG = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)[:2]


def test_the_readme_opens_with_two_short_snippets():
    opening = (ROOT / 'README.md').read_text().split('\n## ')[0]
    assert opening.count('```python') == 2
    assert [len(snippet.splitlines()) for snippet in (PYTHON, CONFIG)] == [5, 5]


def test_the_python_snippet_gives_four_maps():
    values = {}
    # Of a size that takes no time.
    exec(PYTHON.replace('512, 512', '64, 64'), values)
    assert [tuple(m.shape) for m in values['maps']] == [
        (1, 72, 16, 16),
        (1, 144, 8, 8),
        (1, 288, 4, 4),
        (1, 576, 2, 2),
    ]


def test_the_config_snippet_makes_a_segmentor(tmp_path):
    base = Path(mmseg.__file__).parent / '.mim/configs/_base_/models/upernet_swin.py'
    path = tmp_path / 'own.py'
    path.write_text(f"_base_ = '{base}'\ndefault_scope = 'mmseg'\n{CONFIG}")
    model = build_model(Config.fromfile(path))
    assert type(model.backbone).__name__ == 'VisionGRU'
    widths = list(model.backbone.embed_dims)
    assert model.decode_head.in_channels == widths
    assert model.auxiliary_head.in_channels == widths[model.auxiliary_head.in_index]
