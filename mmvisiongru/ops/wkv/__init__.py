"""The Bi-WKV operator of Vision-RWKV."""

from .op import BACKENDS, DISTANCES, bi_wkv, runnable_backends

__all__ = ['BACKENDS', 'DISTANCES', 'bi_wkv', 'runnable_backends']
