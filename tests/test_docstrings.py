"""The examples in docstrings of the public API, the modules of docs/api.rst, do what they show."""

import doctest
import inspect
import re
from importlib import import_module

import pytest

from tests.harness import ROOT

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
