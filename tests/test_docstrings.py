"""The examples in docstrings of the public API do what they show."""

import doctest
import inspect
from importlib import import_module

import pytest

from tools.misc.update_api_reference import PUBLIC, members

EXAMPLES = {
    name: value.__doc__
    for path in PUBLIC
    for name, value in members(import_module(path))
    if '>>> ' in (inspect.getdoc(value) or '')
}


@pytest.mark.parametrize('path', ['mmvisiongru.apis', 'mmvisiongru.ops'])
def test_every_function_has_an_example(path):
    assert {name for name, _ in members(import_module(path))} <= EXAMPLES.keys()


def test_what_one_starts_with_has_an_example():
    assert {'VRWKV', 'VisionGRU', 'MinGRU2D', 'load_weights'} <= EXAMPLES.keys()


@pytest.mark.parametrize('name', EXAMPLES)
def test_example(name):
    # No globals of the module: what an example imports is all that it takes.
    example = doctest.DocTestParser().get_doctest(EXAMPLES[name], {}, name, None, None)
    report = []
    result = doctest.DocTestRunner().run(example, out=report.append)
    assert result.attempted > 1
    assert result.failed == 0, ''.join(report)
