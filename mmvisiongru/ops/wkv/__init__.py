"""The Bi-WKV operator of Vision-RWKV."""

from .op import BACKENDS, DISTANCES, FLOPS_PER_ELEMENT, bi_wkv, runnable_backends

__all__ = ['BACKENDS', 'DISTANCES', 'FLOPS_PER_ELEMENT', 'bi_wkv', 'runnable_backends']
