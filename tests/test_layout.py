"""Imports point one way, config -> launch -> engine -> models -> ops: read from the source.

Late imports count like any other, so that none can hide an arrow that runs back up or a circle.
"""

import ast
import sys
import textwrap
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness import ROOT

GROUND = {'_compat', 'version', 'errors', 'files', 'registry', 'checkpoint'}
# Each part of mmvisiongru with the other parts that it may import. 'mmvisiongru' is its __init__.py.
MAY_IMPORT = {
    'mmvisiongru': {'version'},
    '_compat': set(),
    'version': set(),
    'errors': set(),
    'files': {'errors'},
    'registry': set(),
    'checkpoint': {'_compat', 'errors', 'files'},
    'config': {'_compat', 'errors', 'files'},
    'ops': {'_compat'},
    'models': {*GROUND, 'ops'},
    'inference': {*GROUND, 'ops', 'models'},
    'engine': {*GROUND, 'config', 'ops', 'models', 'inference'},
    'launch': {*GROUND, 'config', 'ops', 'models', 'inference', 'engine'},
    'zoo': {*GROUND, 'config', 'ops', 'models', 'inference', 'launch'},
    'analysis': {*GROUND, 'config', 'ops', 'models', 'inference', 'engine', 'launch', 'zoo'},
    'apis': {*GROUND, 'config', 'ops', 'models', 'inference', 'engine', 'launch', 'zoo', 'analysis'},
    'deployment': {*GROUND, 'config', 'ops', 'models', 'inference', 'engine', 'launch', 'zoo'},
}
# Only their users need them installed: nothing may import them before it is asked to.
OPTIONAL = {'mmseg', 'mmpretrain'}


class Import(NamedTuple):
    """``module`` is imported by ``by``, both with dots, at ``where``; late if a function does it."""

    by: str
    module: str
    late: bool
    where: str


def modules_of(root: Path) -> dict[str, Path]:
    """The modules of the package in ``root`` by their names; a package is its __init__.py."""
    files = (path for path in (root / 'mmvisiongru').rglob('*.py') if '.mim' not in path.parts)
    parts = {path: path.relative_to(root).with_suffix('').parts for path in files}
    return {'.'.join(p[:-1] if p[-1] == '__init__' else p): path for path, p in parts.items()}


def imported_names(node: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    """Each module that a node imports from, absolute, and the name that it takes from there, or ''."""
    match node:
        case ast.Import():
            yield from ((alias.name, '') for alias in node.names)
        case ast.ImportFrom():
            above = package.split('.')[: len(package.split('.')) + 1 - node.level] if node.level else []
            base = '.'.join([*above, *([node.module] if node.module else [])])
            yield from ((base, alias.name) for alias in node.names)
        case ast.Call(
            func=ast.Name(id='import_module') | ast.Attribute(attr='import_module'),
            args=[ast.Constant(str() as name), *_],
        ):
            yield name, ''


def imports_of(root: Path) -> Iterator[Import]:
    """All imports of the package in ``root``; ``from a import b`` is one of a.b where that is a module."""
    modules = modules_of(root)
    for by, path in modules.items():
        package = by if path.name == '__init__.py' else by.rpartition('.')[0]
        tree = ast.parse(path.read_text())
        functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
        late = {inner for function in functions for inner in ast.walk(function)}
        for node in ast.walk(tree):
            for base, name in imported_names(node, package):
                module = f'{base}.{name}' if f'{base}.{name}' in modules else base
                where = f'{path.relative_to(root)}:{node.lineno}'
                yield Import(by, module, node in late, where)


def part(module: str) -> str:
    return module.split('.')[1] if '.' in module else module


def operator(module: str, modules: dict[str, Path]) -> str | None:
    """The package in ops/ that a module belongs to."""
    name = '.'.join(module.split('.')[:3])
    is_operator = part(module) == 'ops' and module != 'mmvisiongru.ops' and name in modules
    return name if is_operator and modules[name].name == '__init__.py' else None


def wrong_inside(found: Import, modules: dict[str, Path]) -> str | None:
    """What is wrong with an import of another module of this package."""
    source, target = part(found.by), part(found.module)
    if source not in MAY_IMPORT:
        return f'{source} is a new part: MAY_IMPORT must say what it may import'
    if target != source and target not in MAY_IMPORT[source]:
        return f'{source} must not import {target}'
    owner = operator(found.module, modules)
    if owner and found.by != 'mmvisiongru.ops' and owner != operator(found.by, modules) and source == 'ops':
        return f'{found.by} must not know the operator {owner}'
    return None


def wrong_outside(found: Import) -> str | None:
    """What is wrong with an import of another library."""
    library, name = found.module.split('.')[0], found.by.split('.')[-1]
    if library in ('tools', 'tests'):
        return f'the package must not import {library}'
    if library == 'triton':
        return None if name.startswith('triton_') else 'only modules named triton_* import triton'
    if part(found.by) == 'ops' and library != 'torch' and library not in sys.stdlib_module_names:
        return f'ops needs torch only, not {library}'
    if part(found.by) == 'models' and library in OPTIONAL:
        return f'models must not import {library}'
    if library in OPTIONAL and not found.late and not name.startswith(f'{library}_'):
        return (
            f'{library} is optional: import it in the function that needs it, or name the module {library}_*'
        )
    return None


def violations(root: Path) -> list[str]:
    """What breaks a rule, with its place: ``mmvisiongru/ops/paths.py:3: ops must not import errors``."""
    modules, wrong = modules_of(root), []
    graph = {name: set() for name in modules}
    for found in imports_of(root):
        inside = found.module.split('.')[0] == 'mmvisiongru'
        message = wrong_inside(found, modules) if inside else wrong_outside(found)
        if message:
            wrong.append(f'{found.where}: {message}')
        if inside and found.module != found.by:
            graph[found.by].add(found.module)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        wrong.append('circle: ' + ' <- '.join(error.args[1]))
    return wrong


def test_imports_point_one_way():
    assert len(modules_of(ROOT)) > 30
    assert violations(ROOT) == []


def test_no_test_imports_another():
    for path in (ROOT / 'tests').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            for base, _ in imported_names(node, 'tests'):
                assert not base.startswith('tests.') or base.split('.')[1] == 'harness', path


GOOD = {
    '__init__.py': 'from .version import __version__',
    'version.py': '',
    'errors.py': '',
    'files.py': 'from mmvisiongru.errors import InputError',
    'checkpoint/__init__.py': 'from .load import load',
    'checkpoint/load.py': 'from .seal import check',
    'checkpoint/seal.py': 'from mmvisiongru import files',
    'ops/__init__.py': 'from .mingru import scan',
    'ops/paths.py': 'import torch, math',
    'ops/mingru/__init__.py': 'from .op import scan',
    'ops/mingru/op.py': 'from ..scan_paths import PATHS\ndef scan():\n    from . import triton_scan',
    'ops/mingru/triton_scan.py': 'import triton',
    'ops/wkv/__init__.py': 'from ..scan_paths import PATHS',
    'models/__init__.py': 'from mmvisiongru.ops import scan\nfrom mmvisiongru.checkpoint import load',
    'engine/__init__.py': 'import mmvisiongru.models',
    'launch/__init__.py': 'from mmvisiongru.engine import Runner\ndef f():\n    import mmseg',
}


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / 'mmvisiongru' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return root


def test_rules_allow_what_they_should(tmp_path):
    assert violations(plant(tmp_path, GOOD)) == []


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('models/__init__.py', 'import mmvisiongru.engine', ':1: models must not import engine'),
        ('models/__init__.py', 'from ..engine import Runner', ':1: models must not import engine'),
        ('models/__init__.py', 'from .. import launch', ':1: models must not import launch'),
        ('files.py', '\ndef f():\n    from .checkpoint import load', ':3: files must not import checkpoint'),
        ('ops/paths.py', 'from mmvisiongru.errors import InputError', ':1: ops must not import errors'),
        ('ops/paths.py', 'import numpy as np', ':1: ops needs torch only, not numpy'),
        ('ops/paths.py', 'def f():\n    import triton', ':2: only modules named triton_* import triton'),
        ('ops/chunks.py', 'from .mingru import op', ' must not know the operator mmvisiongru.ops.mingru'),
        ('ops/wkv/op.py', 'from ..mingru.op import scan', ' must not know the operator'),
        ('engine/__init__.py', 'import_module("mmvisiongru.launch")', ':1: engine must not import launch'),
        ('engine/__init__.py', 'from tools.train import main', ':1: the package must not import tools'),
        ('engine/__init__.py', 'import mmseg', ':1: mmseg is optional'),
        ('models/__init__.py', 'def f():\n    import mmseg', ':2: models must not import mmseg'),
        ('checkpoint/seal.py', 'def f():\n    from .load import load', 'circle: '),
        ('plugins/__init__.py', 'import mmvisiongru.errors', ':1: plugins is a new part'),
    ],
)
def test_planted_violation_is_named(tmp_path, name, text, message):
    found, *more = violations(plant(tmp_path, {**GOOD, name: text}))
    assert message in found
    assert found.startswith((f'mmvisiongru/{name}:', 'circle: '))
    # An arrow that runs back up mostly closes a circle, too.
    assert [line[:8] for line in more] in ([], ['circle: '])
