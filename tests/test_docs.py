"""README, docs and docstrings: examples run, links and commands lead to what exists, the site builds."""

import doctest
import inspect
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import matplotlib.pyplot as plt
import mmseg
import pytest
from mmengine.config import Config

from mmvisiongru.checkpoint import load_checkpoint_file, published_weights
from tests.harness import ROOT
from tests.harness.children import environment
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


SCRIPT = re.compile(r'(?:tools|benchmarks|experiments)/[\w/-]+\.(?:py|sh)')


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Script and options of each command in code blocks and code spans."""
    text = re.sub(r'\\\n\s*', ' ', text)
    blocks = re.findall(r'```bash\n(.*?)```', text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r'`((?:python|bash) [^`]+)`', re.sub(r'```.*?```', '', text, flags=re.DOTALL))
    found = []
    for line in lines:
        line = line.split('#')[0]
        if script := SCRIPT.search(line):
            found.append((script[0], re.findall(r' (--[a-z][\w-]*)', line[script.end() :])))
    return found


# Older entries of the changelog speak of what was there then.
@pytest.mark.parametrize('page', [p for p in PAGES if Path(p).name not in ('CHANGELOG.md', 'model_zoo.md')])
def test_commands_name_scripts_and_options_that_exist(page):
    shared = ('mmvisiongru/launch/options.py', 'mmvisiongru/measure.py', 'tools/visualization/images.py')
    known = ''.join((ROOT / path).read_text(encoding='utf-8') for path in shared)
    for script, options in commands((ROOT / page).read_text(encoding='utf-8')):
        assert (ROOT / script).is_file(), script
        source = (ROOT / script).read_text(encoding='utf-8') + known
        if script.endswith('.sh'):
            source += (ROOT / 'tools/train.py').read_text() + (ROOT / 'tools/test.py').read_text()
        missing = [option for option in options if f"'{option}'" not in source]
        assert missing == [], f'{script} {missing}'


def test_the_site_builds_without_a_warning():
    pytest.importorskip('sphinx', reason='requirements/docs.txt is not installed')
    command = [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-E', 'docs', 'docs/_build/test']
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_tutorial_runs_and_what_it_says_is_so(here):
    plt.switch_backend('agg')
    cells = json.loads((ROOT / 'docs/tutorial.ipynb').read_text(encoding='utf-8'))['cells']
    values = {}
    for i, cell in enumerate(cells):
        if cell['cell_type'] == 'code':
            exec(compile(''.join(cell['source']), f'tutorial.ipynb, cell {i}', 'exec'), values)
    plt.close('all')
    assert values['accuracy'] > 0.9
    assert values['runner'].iter == 20
    # Of even and odd digits, half are right by chance.
    assert values['metrics']['accuracy/top1'] > 75
    assert values['difference'] < 1e-5


# ---- docstrings of the public API, the modules of docs/api.rst

PUBLIC = re.findall(r'automodule:: (\S+)', (ROOT / 'docs' / 'api.rst').read_text(encoding='utf-8'))


def members(path: str) -> dict[str, object]:
    """Public classes and functions of a module: those of ``__all__``, or its own."""
    module = import_module(path)
    names = getattr(module, '__all__', None) or [
        name
        for name, value in vars(module).items()
        if getattr(value, '__module__', None) == path and not name.startswith('_')
    ]
    return {name: getattr(module, name) for name in names}


EXAMPLES = {
    name: value.__doc__
    for path in PUBLIC
    for name, value in members(path).items()
    if '>>> ' in (inspect.getdoc(value) or '')
}


def test_functions_and_what_one_starts_with_have_examples():
    functions = members('mmvisiongru.apis').keys() | members('mmvisiongru.ops').keys()
    assert functions | {'VRWKV', 'VisionGRU', 'MinGRU2D', 'load_weights'} <= EXAMPLES.keys()


@pytest.mark.parametrize('name', EXAMPLES)
def test_example(name):
    # Without the module's globals: an example imports what it uses.
    example = doctest.DocTestParser().get_doctest(EXAMPLES[name], {}, name, None, None)
    report = []
    result = doctest.DocTestRunner().run(example, out=report.append)
    assert result.attempted > 1
    assert result.failed == 0, ''.join(report)
