"""The minGRU scan."""

from .op import BACKENDS, CANDIDATES, FLOPS_PER_ELEMENT, mingru_scan, mingru_scan_2d, runnable_backends

__all__ = [
    'BACKENDS',
    'CANDIDATES',
    'FLOPS_PER_ELEMENT',
    'mingru_scan',
    'mingru_scan_2d',
    'runnable_backends',
]
