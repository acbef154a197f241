"""The documentation: the site builds without a warning, and the commands that pages show exist."""

import re
import subprocess
import sys

import pytest

from tests.harness import ROOT
from tests.harness.children import environment

PAGES = [
    path
    for pattern in ('*.md', 'docs/*.md', 'configs/*/*.md', 'experiments/*.md')
    for path in sorted(ROOT.glob(pattern))
    # Older entries of the changelog speak of what was there then.
    if path.name not in ('CHANGELOG.md', 'model_zoo.md', 'tutorial.md')
]
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


@pytest.mark.parametrize('page', PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_name_scripts_and_options_that_exist(page):
    shared = ('mmvisiongru/launch/options.py', 'tools/visualization/images.py')
    known = ''.join((ROOT / path).read_text(encoding='utf-8') for path in shared)
    for script, options in commands(page.read_text(encoding='utf-8')):
        assert (ROOT / script).is_file(), script
        source = (ROOT / script).read_text(encoding='utf-8') + known
        if script.endswith('.sh'):
            source += (ROOT / 'tools/train.py').read_text() + (ROOT / 'tools/test.py').read_text()
        missing = [option for option in options if f"'{option}'" not in source]
        assert missing == [], f'{script} {missing}'


def test_the_site_builds_without_a_warning():
    pytest.importorskip('sphinx', reason='requirements/docs.txt is not installed')
    done = subprocess.run(
        [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-E', 'docs', 'docs/_build/test'],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
