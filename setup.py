"""Build definition of mmvisiongru."""

import re
import shutil
import tempfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# What OpenMMLab tools look for in `<package>/.mim`.
MIM = ('configs', 'tools', 'weights', 'model-index.yml')
# What runs in a clone only.
CLONE = ('run_tests.sh', 'quickstart.*', 'make_env.sh', 'publish_weights.py', 'update_model_zoo.py')
# A build folder in the tree would carry files of an older build into the next wheel.
BUILD = tempfile.TemporaryDirectory()


def copy_mim(package):
    """Copy configs, tools and the model index to ``package/.mim``."""
    for name in MIM:
        source, target = ROOT / name, package / '.mim' / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__', '*.pyc', *CLONE))
        else:
            shutil.copyfile(source, target)


def link_mim(package):
    """Link them instead, so that an editable install shows every edit."""
    shutil.rmtree(package / '.mim', ignore_errors=True)
    (package / '.mim').mkdir()
    for name in MIM:
        (package / '.mim' / name).symlink_to(Path('..', '..', name))


class BuildPyWithMim(build_py):
    """``build_py`` that adds ``.mim``; all wheels, editable ones too, pass through here."""

    def run(self):
        """Build the modules, then ``.mim`` beside them."""
        super().run()
        if self.editable_mode:
            link_mim(ROOT / 'mmvisiongru')
        else:
            copy_mim(Path(self.build_lib, 'mmvisiongru'))


def read(name):
    """Text of a file of the repository."""
    return (ROOT / name).read_text(encoding='utf-8')


def requirements(name):
    """Lines of ``requirements/<name>.txt`` without comments."""
    lines = read(f'requirements/{name}.txt').splitlines()
    return [line for line in lines if line and not line.startswith('#')]


setup(
    name='mmvisiongru',
    version=re.search(r"__version__ = '(.+)'", read('mmvisiongru/version.py'))[1],
    description='VisionGRU and Vision-RWKV: vision backbones of linear cost for OpenMMLab',
    long_description=read('README.md'),
    long_description_content_type='text/markdown',
    author='The mmvisiongru maintainers',
    project_urls={
        'VisionGRU': 'https://arxiv.org/abs/2412.18178',
        'Vision-RWKV': 'https://arxiv.org/abs/2403.02308',
        'minGRU': 'https://arxiv.org/abs/2410.01201',
    },
    keywords=['VisionGRU', 'minGRU', 'backbone', 'segmentation', 'classification', 'OpenMMLab', 'PyTorch'],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Environment :: GPU :: NVIDIA CUDA',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX',
        'Programming Language :: C++',
        'Programming Language :: Python :: 3 :: Only',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in range(10, 14)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    license='Apache-2.0',
    license_files=['LICENSE'],
    packages=find_packages(include=['mmvisiongru', 'mmvisiongru.*']),
    package_data={'mmvisiongru': ['ops/csrc/*']},
    python_requires='>=3.10',
    # Two families of distributions provide mmengine, mmcv, mmseg and mmpretrain in the same
    # folders, and torch comes in builds for each accelerator: requiring either here would let pip
    # overwrite a working set. `mmvisiongru/__init__.py` checks what is there and says what to do;
    # the extra `mim` asks for the default.
    install_requires=['packaging'],
    extras_require={
        'mim': requirements('mminstall'),
        'det': requirements('det'),
        'deploy': requirements('deploy'),
        'tests': requirements('tests'),
    },
    cmdclass={'build_py': BuildPyWithMim},
    options={'build': {'build_base': BUILD.name}, 'egg_info': {'egg_base': BUILD.name}},
    zip_safe=False,
)
