"""Hooks that keep a run from losing what it has."""

from mmvisiongru.engine.guarded_dataset import BadSampleHook
from mmvisiongru.engine.resume import ExactResumeHook

from .checkpoint import AtomicCheckpointHook
from .guard import GuardHook
from .logger import AtomicLoggerHook
from .stall import StallHook

__all__ = [
    'AtomicCheckpointHook', 'AtomicLoggerHook', 'BadSampleHook', 'ExactResumeHook', 'GuardHook', 'StallHook',
]  # fmt: skip
