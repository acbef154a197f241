"""Write docs/api.md, the reference of what a program may import, from the docstrings.

    python tools/misc/update_api_reference.py
    python tools/misc/update_api_reference.py --check

`--check` writes nothing and ends with exit code 1 if something would change.
"""

import argparse
import inspect
import sys
from importlib import import_module
from pathlib import Path

TARGET = Path(__file__).resolve().parents[2] / 'docs' / 'api.md'
# What is promised to stay, by module. Everything else may change from one release to the next.
PUBLIC = {
    'mmvisiongru.apis': 'Configs and models by name',
    'mmvisiongru.models': 'Models, for configs and as torch modules',
    'mmvisiongru.models.layers': 'Layers',
    'mmvisiongru.ops': 'Operators',
    'mmvisiongru.checkpoint': 'Checkpoints',
    'mmvisiongru.engine.hooks': 'Hooks',
    'mmvisiongru.engine.runner': 'Runner',
    'mmvisiongru.errors': 'Errors',
}


def members(module) -> list[tuple[str, object]]:
    """Public classes and functions of a module, in its order: those of ``__all__``, or its own."""
    names = getattr(module, '__all__', None) or [
        name
        for name, value in vars(module).items()
        if getattr(value, '__module__', None) == module.__name__ and not name.startswith('_')
    ]
    return [(name, getattr(module, name)) for name in names]


def entry(name: str, value) -> str:
    """Name, signature and docstring, as Markdown that shows a docstring as it was written."""
    signature = ''
    # An exception has none of its own.
    if not (inspect.isclass(value) and issubclass(value, Exception)):
        signature = str(inspect.signature(value))
    if len(name + signature) > 100:
        parameters = (str(p) for p in inspect.signature(value).parameters.values())
        signature = '(\n    ' + ',\n    '.join(parameters) + ',\n)'
    return f'### {name}\n\n```text\n{name}{signature}\n\n{inspect.getdoc(value)}\n```\n'


def reference() -> str:
    """The whole page."""
    parts = [
        '# API reference\n',
        'Made from the docstrings by `python tools/misc/update_api_reference.py`. '
        '[docs/python.md](python.md) has examples.\n',
    ]
    for path, title in PUBLIC.items():
        parts.append(f'## {title}: `{path}`\n')
        parts += [entry(name, value) for name, value in members(import_module(path))]
    return '\n'.join(parts)


def parse_args(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--check', action='store_true', help='write nothing, only say whether the page is up to date'
    )
    return parser.parse_args(argv)


def main(argv=None) -> int:
    """Update or check."""
    args = parse_args(argv)
    text = reference()
    changed = not TARGET.exists() or TARGET.read_text() != text
    if changed:
        print(TARGET.relative_to(TARGET.parents[1]), 'is out of date' if args.check else 'updated')
        if not args.check:
            TARGET.write_text(text)
    return int(args.check and changed)


if __name__ == '__main__':
    sys.exit(main())
