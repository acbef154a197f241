"""The documentation site builds without a warning."""

import subprocess
import sys

import pytest

from tests.harness import ROOT
from tests.harness.children import environment

pytest.importorskip('sphinx', reason='requirements/docs.txt is not installed')


def test_the_site_builds_without_a_warning():
    done = subprocess.run(
        [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-E', 'docs', 'docs/_build/test'],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
