"""Imports point one way, config -> launch -> engine -> models -> ops: read from the source.

Late imports count like any other, so that none can hide an arrow that runs back up.
"""

import ast
import re
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

from tests.harness import ROOT

GROUND = {
    '_compat', 'version', 'errors', 'files', 'sample_checks', 'registry', 'checkpoint',
}  # fmt: skip
# Each part of mmvisiongru with the other parts that it may import. 'mmvisiongru' is its __init__.py.
MAY_IMPORT = {
    'mmvisiongru': {'version'},
    '_compat': set(),
    'version': set(),
    'errors': set(),
    'files': {'errors'},
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
    'measure': {'errors'},
    'apis': {*GROUND, 'config', 'ops', 'models', 'inference', 'engine', 'launch', 'measure', 'zoo'},
    'selfcheck': {*GROUND, 'config', 'ops', 'models', 'inference', 'measure', 'zoo'},
    '__main__': {'selfcheck'},
    'deployment': {*GROUND, 'config', 'ops', 'models', 'inference', 'engine', 'launch', 'zoo'},
}
# Only their users need them installed: nothing may import them before it is asked to.
OPTIONAL = {'mmseg', 'mmpretrain', 'mmdet'}


def trees(*folders: str) -> dict[Path, ast.AST]:
    """What the files of some folders hold, by path from the root."""
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob('*.py'))]
    return {p.relative_to(ROOT): ast.parse(p.read_text()) for p in files if '.mim' not in p.parts}


def imports_of(path: Path, tree: ast.AST) -> Iterator[tuple[str, bool, str]]:
    """Full name of what each import takes, whether a function does it, and where."""
    package = '.'.join(path.parent.parts)
    functions = (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
    late = {inner for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom():
                base = resolve_name('.' * node.level + (node.module or ''), package)
                names = [f'{base}.{alias.name}' for alias in node.names]
            case ast.Call(
                func=ast.Name(id='import_module') | ast.Attribute(attr='import_module'),
                args=[ast.Constant(str() as name), *_],
            ):
                names = [name]
            case _:
                continue
        yield from ((name, node in late, f'{path}:{node.lineno}') for name in names)


def part(name: str) -> str:
    if name.startswith('mmvisiongru.models.heads'):
        return 'heads'
    second = name.split('.')[1] if '.' in name else name
    return second if second in MAY_IMPORT else 'mmvisiongru'


def broken_rule(by: str, name: str, late: bool, operators: set[str]) -> str | None:
    """The rule that an import of ``name`` in the module ``by`` breaks."""
    source, library, own = part(by), name.split('.')[0], by.split('.')[-1]
    of_library = own.startswith(f'{library}_') or (source, library) == ('heads', 'mmseg')
    known = ('mmvisiongru', 'torch', 'triton', *sys.stdlib_module_names)
    others = operators - {'.'.join(by.split('.')[:3])}
    rules = {
        f'{source} must not import {part(name)}': (
            library == 'mmvisiongru' and part(name) not in MAY_IMPORT[source] | {source}
        ),
        'operators must not know each other': (
            source == 'ops' and by != 'mmvisiongru.ops' and '.'.join(name.split('.')[:3]) in others
        ),
        f'the package must not import {library}': library in ('tools', 'tests'),
        'only modules named triton_* import triton': library == 'triton' and not of_library,
        f'ops needs torch only, not {library}': source == 'ops' and library not in known,
        f'models must not import {library}': source == 'models' and library in OPTIONAL,
        f'{library} is optional: import it late': library in OPTIONAL and not (late or of_library),
    }
    return next((rule for rule, broken in rules.items() if broken), None)


def test_imports_point_one_way():
    found = trees('mmvisiongru')
    modules = {'.'.join(path.with_suffix('').parts).removesuffix('.__init__'): path for path in found}
    operators = {module for module, path in modules.items() if path.match('ops/*/__init__.py')}
    # Each part has its line in the table, and each line its part.
    assert {path.parts[1].removesuffix('.py') for path in found} - {'__init__'} <= MAY_IMPORT.keys()
    assert {part(module) for module in modules} == MAY_IMPORT.keys()
    imports = ((by, each) for by, path in modules.items() for each in imports_of(path, found[path]))
    wrong = ((where, broken_rule(by, name, late, operators)) for by, (name, late, where) in imports)
    assert [f'{where}: {rule}' for where, rule in wrong if rule] == []


# A final underscore marks a key of mmengine's configs.
PRIVATE = re.compile(r'_(?!_)\w*(?<!_)')
LOOKUPS = {'getattr', 'setattr', 'hasattr', 'delattr'}


def test_private_names_of_other_packages_are_in_compat_only():
    """Those looked up as text, or in ``self``, where they may be inherited; ruff finds the others."""
    own, used = set(), []
    for path, tree in trees('mmvisiongru', 'tools', 'benchmarks', 'experiments').items():
        for node in ast.walk(tree):
            match node:
                case (
                    ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store())
                ):
                    own.add(name)
                case ast.Attribute(value=ast.Name(id='self' | 'cls'), attr=name, ctx=ast.Store()):
                    own.add(name)
                case ast.Attribute(
                    value=ast.Name(id='self' | 'cls') | ast.Call(func=ast.Name(id='super')), attr=name
                ):
                    used.append((name, path, node.lineno))
                case ast.Call(func=ast.Name(id=function), args=[_, text, *_]) if function in LOOKUPS:
                    text = text.values[0] if isinstance(text, ast.JoinedStr) else text
                    used.append((str(getattr(text, 'value', '')), path, node.lineno))
    foreign = [each for each in used if PRIVATE.fullmatch(each[0]) and each[0] not in own]
    # There it finds what it looks for.
    assert {path for _, path, _ in foreign} == {Path('mmvisiongru/_compat.py')}
