"""Build definition of mmvisiongru."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'mmvisiongru/version.py').read_text())[1]

setup(
    name='mmvisiongru',
    version=VERSION,
    description='VisionGRU backbone for mmsegmentation and mmpretrain',
    license='Apache-2.0',
    packages=find_packages(include=['mmvisiongru', 'mmvisiongru.*']),
    python_requires='>=3.10',
    install_requires=['packaging'],
)
