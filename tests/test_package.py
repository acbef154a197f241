"""What gets installed, and the check of the stack at import."""

import os
import shutil
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from importlib import metadata
from types import SimpleNamespace

import pytest

import mmvisiongru
from tests.harness import ROOT, versions

MAINTAINED = {'torch': '2.15.0', 'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6',
              'onedl-mmsegmentation': '1.4.2', 'onedl-mmpretrain': '1.3.6'}  # fmt: skip
ORIGINAL = {'torch': '2.5.1+cu124', 'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmsegmentation': '1.2.2',
            'mmpretrain': '1.2.0'}  # fmt: skip


def tracked():
    """Files of the repository that git tracks or would add."""
    command = ['git', '-C', ROOT, 'ls-files', '--cached', '--others', '--exclude-standard']
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name for name in names if (ROOT / name).exists()}


def build(kind, source, out):
    """Call the build backend as pip does, in a new process; returns the path of the distribution."""
    code = f'from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))'
    done = subprocess.run([sys.executable, '-c', code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope='module')
def distributions(tmp_path_factory):
    """A copy of the repository, the wheel and sdist built in it, and the wheel built from that sdist."""
    tmp = tmp_path_factory.mktemp('dist')
    source = tmp / 'source'
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        # To compress the 17 MB of the weights would take time, and shows nothing.
        (source / name).write_bytes((ROOT / name).read_bytes()[: 1 << 18])
    before = sorted(source.rglob('*'))
    wheel, sdist = build('wheel', source, tmp), build('sdist', source, tmp)
    assert sorted(source.rglob('*')) == before, 'building left files in the tree'
    shutil.unpack_archive(sdist, tmp / 'unpacked')
    (tmp / 'again').mkdir()
    (unpacked,) = (tmp / 'unpacked').iterdir()
    return wheel, unpacked, build('wheel', unpacked, tmp / 'again')


def names(wheel):
    """Files in a wheel except its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if '.dist-info/' not in name}


def test_wheel_holds_the_package_and_mim_and_sdist_builds_the_same(distributions):
    wheel, unpacked, again = distributions
    own = {name for name in tracked() if name.startswith('mmvisiongru/')}
    mim = {n for n in tracked() if n.startswith(('configs/', 'tools/', 'weights/')) or n == 'model-index.yml'}
    clone = ('run_tests.sh', 'quickstart.sh', 'quickstart.py', 'make_env.sh', '_weights.py', '_model_zoo.py')
    mim = {name for name in mim if not name.endswith(clone)}
    assert names(wheel) == names(again) == own | {f'mmvisiongru/.mim/{name}' for name in mim}
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert all(first.read(name) == second.read(name) for name in names(wheel))
    # Once is enough for the weights, and tests need the repository.
    assert not [*(unpacked / 'mmvisiongru').glob('.mim'), *unpacked.glob('tests')]


STARTER = """
import os, runpy, sys
for path in sys.argv[1:]:
    sys.argv, sys.path[0] = [path, '--help'], os.path.dirname(path)
    try:
        runpy.run_path(path, run_name='__main__')
    except SystemExit as end:
        assert not end.code, (path, end.code)
    else:
        raise AssertionError(f'{path} did not print its help')
"""


def test_every_shipped_script_starts_where_nothing_else_is(distributions, tmp_path):
    with zipfile.ZipFile(distributions[0]) as archive:
        archive.extractall(tmp_path)
    files = sorted((tmp_path / 'mmvisiongru/.mim/tools').rglob('*.py'))
    scripts = [str(path) for path in files if '__main__' in path.read_text(encoding='utf-8')]
    assert scripts
    env = dict(os.environ, PYTHONPATH=str(tmp_path))
    command = [sys.executable, '-c', STARTER, *scripts]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('usage: ') == len(scripts)


def test_wheel_requires_nothing_that_another_family_provides(distributions):
    with zipfile.ZipFile(distributions[0]) as archive:
        (path,) = [n for n in archive.namelist() if n.endswith('.dist-info/METADATA')]
        lines = archive.read(path).decode().splitlines()
    hard = [line for line in lines if line.startswith('Requires-Dist:') and 'extra ==' not in line]
    assert (hard, f'Version: {mmvisiongru.__version__}' in lines) == (['Requires-Dist: packaging'], True)


def fake_stack(monkeypatch, stack, files='__init__.py'):
    """Let it look as if only these distributions were installed; a folder without files is a namespace."""
    monkeypatch.setattr(metadata, 'version', versions(stack))
    monkeypatch.setattr(mmvisiongru, 'sys', SimpleNamespace(modules={}))
    there = {module for module, (_, names) in mmvisiongru._STACK.items() if stack.keys() & {*names}}
    spec = SimpleNamespace(origin=files)
    monkeypatch.setattr(mmvisiongru.util, 'find_spec', lambda name: spec if name in there else None)


# A vendor's build of 2.5 that calls itself a pre-release; neither mmseg nor mmpretrain.
VENDOR = {'torch': '2.5.0a0+872d972e41.nv24.8', 'mmengine-lite': '0.10.4', 'mmcv-lite': '2.2.0'}


@pytest.mark.parametrize('stack', [MAINTAINED, ORIGINAL, VENDOR])
def test_working_stacks_pass(stack, monkeypatch):
    fake_stack(monkeypatch, stack)
    mmvisiongru._check_stack()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'torch': '2.4.1'}, 'torch >=2.5 (found 2.4.1)'),
        ({'torch': None}, 'torch >=2.5 (found none)'),
        ({'onedl-mmcv': None, 'mmcv-full': '1.7.2'}, 'mmcv >=2.0,<3 (found 1.7.2)'),
        ({'onedl-mmpretrain': '2.0.0'}, 'mmpretrain >=1.0,<2 (found 2.0.0)'),
        ({'onedl-mmsegmentation': '0.30.0'}, 'mmseg >=1.0,<2 (found 0.30.0)'),
    ],
)
def test_unfit_stack_is_named_in_one_line(change, message, monkeypatch):
    fake_stack(monkeypatch, {k: v for k, v in (MAINTAINED | change).items() if v})
    # No ImportError, which mmengine's registry swallows.
    with pytest.raises(RuntimeError) as error:
        mmvisiongru._check_stack()
    assert f'needs {message};' in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('stack', 'files', 'named', 'command'),
    [
        (
            MAINTAINED | dict(mmengine='0.10.7'), '__init__.py', 'onedl-mmengine and mmengine',
            'pip uninstall -y onedl-mmengine mmengine && pip install --no-deps onedl-mmengine==0.10.12',
        ),
        (
            ORIGINAL | {'mmcv-lite': '2.1.0'}, '__init__.py', 'mmcv-lite and mmcv',
            'pip uninstall -y mmcv-lite mmcv && pip install --no-deps mmcv-lite==2.1.0',
        ),
        (
            dict(torch='2.5.1+cu124'), None, 'torch',
            'pip uninstall -y torch && pip install --no-deps torch==2.5.1',
        ),
    ],
)  # fmt: skip
def test_damaged_stack_is_named_with_the_command_that_mends_it(stack, files, named, command, monkeypatch):
    fake_stack(monkeypatch, stack, files)
    with pytest.raises(RuntimeError) as error:
        mmvisiongru._check_stack()
    assert f'({named} ' in str(error.value)
    assert str(error.value).endswith(f': {command}')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('version', 'fits'), [('0.10.7', True), ('0.9.1', False)])
def test_sources_on_the_path_are_asked_for_their_version(version, fits, monkeypatch):
    fake_stack(monkeypatch, {k: v for k, v in MAINTAINED.items() if k != 'onedl-mmengine'})
    mmvisiongru.sys.modules['mmengine'] = None
    monkeypatch.setitem(sys.modules, 'mmengine', SimpleNamespace(__version__=version))
    with nullcontext() if fits else pytest.raises(RuntimeError, match=r'found 0\.9\.1'):
        mmvisiongru._check_stack()


def test_import_is_light():
    code = 'import mmvisiongru, sys; print([m for m in sys.argv[1:] if m in sys.modules])'
    heavy = ['torch', 'torchvision', 'mmengine', 'mmcv', 'mmseg', 'mmpretrain', 'mmvisiongru.registry']
    done = subprocess.run([sys.executable, '-c', code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout == '[]\n'
