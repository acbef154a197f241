"""The minGRU scan."""

from .op import BACKENDS, CANDIDATES, mingru_scan, mingru_scan_2d, runnable_backends

__all__ = ['BACKENDS', 'CANDIDATES', 'mingru_scan', 'mingru_scan_2d', 'runnable_backends']
