"""Imports point one way, config -> launch -> engine -> models -> ops: read from the source.

Late imports count like any other, so that none can hide an arrow that runs back up.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.harness import ROOT

GROUND = {
    '_compat', 'version', 'errors', 'files', 'outputs', 'sample_checks', 'registry', 'checkpoint',
}  # fmt: skip
# Each part of mmvisiongru with the other parts that it may import. 'mmvisiongru' is its __init__.py.
MAY_IMPORT = {
    'mmvisiongru': {'version'},
    '_compat': set(),
    'version': set(),
    'errors': set(),
    'files': {'errors'},
    'outputs': {'config', 'errors', 'files'},
    'sample_checks': {'errors', 'files'},
    'mmcv_ops': {'errors'},
    'registry': {'checkpoint'},
    'checkpoint': {'_compat', 'errors', 'files'},
    'config': {'_compat', 'errors', 'files'},
    'ops': {'_compat'},
    'models': {*GROUND, 'ops'},
    # A part of its own although it lies in models/: it needs mmseg, so only the registry imports it.
    'heads': {*GROUND, 'models'},
    'inference': {*GROUND, 'ops', 'models'},
    'engine': {*GROUND, 'config', 'ops', 'models', 'inference'},
    'launch': {*GROUND, 'mmcv_ops', 'config', 'ops', 'models', 'inference', 'engine'},
    'zoo': {*GROUND, 'config', 'ops', 'models', 'inference', 'launch'},
    'measure': set(),
    'apis': {*GROUND, 'config', 'ops', 'models', 'inference', 'engine', 'launch', 'zoo'},
    'selfcheck': {*GROUND, 'config', 'ops', 'models', 'inference', 'measure', 'zoo'},
    '__main__': {'selfcheck'},
    'deployment': {*GROUND, 'config', 'ops', 'models', 'inference', 'engine', 'launch', 'zoo'},
}
# Only their users need them installed: nothing may import them before it is asked to.
OPTIONAL = {'mmseg', 'mmpretrain', 'mmdet'}


class Import(NamedTuple):
    """``module`` is imported by ``by``, both with dots, at ``where``; late if a function does it."""

    by: str
    module: str
    late: bool
    where: str


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
    files = [path for path in (root / 'mmvisiongru').rglob('*.py') if '.mim' not in path.parts]
    parts = {path: path.relative_to(root).with_suffix('').parts for path in files}
    modules = {path: '.'.join(p[:-1] if p[-1] == '__init__' else p) for path, p in parts.items()}
    for path, by in modules.items():
        package = by if path.name == '__init__.py' else by.rpartition('.')[0]
        tree = ast.parse(path.read_text())
        functions = (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
        late = {inner for function in functions for inner in ast.walk(function)}
        for node in ast.walk(tree):
            for base, name in imported_names(node, package):
                module = f'{base}.{name}' if f'{base}.{name}' in modules.values() else base
                yield Import(by, module, node in late, f'{path.relative_to(root)}:{node.lineno}')


def part(module: str) -> str:
    if module.startswith('mmvisiongru.models.heads'):
        return 'heads'
    return module.split('.')[1] if '.' in module else module


def wrong_import(found: Import, operators: set[str]) -> str | None:
    """The rule that an import breaks."""
    source, target, library = part(found.by), part(found.module), found.module.split('.')[0]
    own, name = library == 'mmvisiongru', found.by.split('.')[-1]
    owner, ours = ('.'.join(module.split('.')[:3]) for module in (found.module, found.by))
    may_import = MAY_IMPORT.get(source, set()) | {source}
    inside_ops = source == 'ops' and found.by != 'mmvisiongru.ops'
    early = not found.late and not name.startswith(f'{library}_') and (source, library) != ('heads', 'mmseg')
    foreign = library not in ('mmvisiongru', 'torch', 'triton', *sys.stdlib_module_names)
    rules = {
        f'{source} is a new part: MAY_IMPORT must say what it may import': own and source not in MAY_IMPORT,
        f'{source} must not import {target}': own and target not in may_import,
        f'{found.by} must not know the operator {owner}': inside_ops and owner in operators - {ours},
        f'the package must not import {library}': library in ('tools', 'tests'),
        'only modules named triton_* import triton': library == 'triton' and not name.startswith('triton_'),
        f'ops needs torch only, not {library}': source == 'ops' and foreign,
        f'models must not import {library}': source == 'models' and library in OPTIONAL,
        f'{library} is optional: import it late': library in OPTIONAL and early,
    }
    return next((rule for rule, broken in rules.items() if broken), None)


def violations(root: Path) -> list[str]:
    """What breaks a rule, with its place: ``mmvisiongru/ops/paths.py:3: ops must not import errors``."""
    operators = {f'mmvisiongru.ops.{p.parent.name}' for p in root.glob('mmvisiongru/ops/*/__init__.py')}
    rules = ((found.where, wrong_import(found, operators)) for found in imports_of(root))
    return [f'{where}: {rule}' for where, rule in rules if rule]


# A final underscore marks a key of mmengine's configs.
PRIVATE = re.compile(r'_(?!_)\w*(?<!_)')
LOOKUPS = {'getattr', 'setattr', 'hasattr', 'delattr'}


def own_attributes(tree: ast.AST) -> Iterator[str]:
    """Names of functions and classes in a file, and of attributes that it sets."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name(id='self' | 'cls'), attr=name, ctx=ast.Store()):
                yield name


def private_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and private name that a file looks up as text, or in ``self``, where it may be inherited."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(
                value=ast.Name(id='self' | 'cls') | ast.Call(func=ast.Name(id='super')), attr=name
            ):
                pass
            case ast.Call(func=ast.Name(id=function), args=[_, looked_up, *_]) if function in LOOKUPS:
                looked_up = looked_up.values[0] if isinstance(looked_up, ast.JoinedStr) else looked_up
                name = str(getattr(looked_up, 'value', ''))
            case _:
                continue
        if PRIVATE.fullmatch(name):
            yield node.lineno, name


def foreign_privates(root: Path) -> list[str]:
    """Private names that no file defines; ruff finds the attributes of other objects, and imports."""
    folders = ('mmvisiongru', 'tools', 'benchmarks', 'experiments')
    files = [path for folder in folders for path in sorted((root / folder).rglob('*.py'))]
    trees = {path: ast.parse(path.read_text()) for path in files if '.mim' not in path.parts}
    own = {name for tree in trees.values() for name in own_attributes(tree)}
    return [
        f'{path.relative_to(root)}:{line}: {name} is private to another package: use mmvisiongru/_compat.py'
        for path, tree in trees.items()
        for line, name in private_names(tree)
        if name not in own and path != root / 'mmvisiongru/_compat.py'
    ]


def test_private_names_of_other_packages_are_in_compat_only():
    assert foreign_privates(ROOT) == []


def test_imports_point_one_way():
    assert violations(ROOT) == []


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / 'mmvisiongru' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


# File of the package: its text, and what is said of it.
PLANTED = {
    'models/a.py': ('import mmvisiongru.engine', ':1: models must not import engine'),
    'models/b.py': ('from .. import launch', ':1: models must not import launch'),
    'models/c.py': ('def f():\n    import mmseg', ':2: models must not import mmseg'),
    'models/d.py': ('from .heads import UPerHead', ':1: models must not import heads'),
    'models/heads/a.py': ('import mmpretrain', ':1: mmpretrain is optional'),
    'files.py': ('\ndef f():\n    from .checkpoint import load', ':3: files must not import checkpoint'),
    'ops/a.py': ('from mmvisiongru.errors import InputError', ':1: ops must not import errors'),
    'ops/b.py': ('import numpy as np', ':1: ops needs torch only, not numpy'),
    'ops/c.py': ('def f():\n    import triton', ':2: only modules named triton_* import triton'),
    'ops/wkv/a.py': ('from ..mingru.op import scan', ':1: mmvisiongru.ops.wkv.a must not know the operator'),
    'engine/a.py': ('import_module("mmvisiongru.launch")', ':1: engine must not import launch'),
    'engine/b.py': ('from tools.train import main', ':1: the package must not import tools'),
    'plugins.py': ('import mmvisiongru.errors', ':1: plugins is a new part'),
}
ALLOWED = {
    'ops/mingru/__init__.py': '',
    'ops/wkv/__init__.py': '',
    'ops/mingru/op.py': 'import math, torch\ndef scan():\n    from . import triton_scan',
    'ops/mingru/triton_scan.py': 'import triton',
    'models/heads/__init__.py': 'import mmseg',
    'launch/__init__.py': 'from mmvisiongru.engine import Runner\ndef f():\n    import mmseg',
    'checkpoint/__init__.py': 'from .load import check',
}


def test_planted_violations_are_named_and_nothing_else(tmp_path):
    files = ALLOWED | {name: text for name, (text, _) in PLANTED.items()}
    found = dict(line.split(':', 1) for line in violations(plant(tmp_path, files)))
    assert found.keys() == {f'mmvisiongru/{name}' for name in PLANTED}
    for name, (_, message) in PLANTED.items():
        assert f':{found[f"mmvisiongru/{name}"]}'.startswith(message)


OWN = """
class A:
    def __init__(self): self._x = 1
    def g(self): return self._x, dict(_delete_=True), getattr(self, '_x'), super()._x
"""
FOREIGN = """getattr(x, "_name")
getattr(x, f"_name{y}")
class A(B): f = lambda self: self._name
class A(B): f = lambda self: super()._name()
"""


def test_planted_private_names_are_named_and_own_ones_are_not(tmp_path):
    files = {'a.py': OWN, '_compat.py': FOREIGN, 'foreign.py': FOREIGN}
    found = {tuple(line.split(':')[:2]) for line in foreign_privates(plant(tmp_path, files))}
    assert found == {('mmvisiongru/foreign.py', str(n)) for n, _ in enumerate(FOREIGN.splitlines(), 1)}
