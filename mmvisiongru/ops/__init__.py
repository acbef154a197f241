"""The minGRU scan as framework operators; imports torch only."""

from .mingru_scan import mingru_scan, mingru_scan_2d, runnable_backends

__all__ = ['mingru_scan', 'mingru_scan_2d', 'runnable_backends']
