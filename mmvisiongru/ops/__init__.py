"""Token mixers of linear cost as framework operators, one folder per operator; imports torch only."""

from .mingru import mingru_scan, mingru_scan_2d, runnable_backends
from .wkv import bi_wkv

__all__ = ['bi_wkv', 'mingru_scan', 'mingru_scan_2d', 'runnable_backends']
