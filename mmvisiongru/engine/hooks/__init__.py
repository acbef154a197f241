"""Hooks that keep a run from losing what it has."""

from .checkpoint import AtomicCheckpointHook
from .exact_resume import ExactResumeHook
from .guard import GuardHook
from .logger import AtomicLoggerHook
from .pictures import LabelMapHook, PictureHook
from .samples import BadSampleHook
from .stall import StallHook

__all__ = [
    'AtomicCheckpointHook',
    'AtomicLoggerHook',
    'BadSampleHook',
    'ExactResumeHook',
    'GuardHook',
    'LabelMapHook',
    'PictureHook',
    'StallHook',
]
