"""Let mmengine's FLOP counter, which mmseg's and mmpretrain's tools use, count our operators."""

from math import prod

from mmengine.analysis.complexity_analysis import _DEFAULT_SUPPORTED_FLOP_OPS
from mmengine.analysis.jit_handles import get_shape

from mmvisiongru.ops import mingru, wkv

# Operators and floating-point operations of an element of their output.
_OPERATORS = dict(
    mingru_scan=mingru.FLOPS_PER_ELEMENT,
    mingru_scan_2d=mingru.FLOPS_PER_ELEMENT,
    bi_wkv=wkv.FLOPS_PER_ELEMENT,
)


def _macs(flops: int):
    # mmengine counts multiply-accumulates and calls them flops.
    return lambda inputs, outputs: flops // 2 * prod(get_shape(outputs[0]))


# Its counter takes further operators instance by instance only, and the tools make their own instance.
for _name, _flops in _OPERATORS.items():
    _DEFAULT_SUPPORTED_FLOP_OPS[f'mmvisiongru::{_name}'] = _macs(_flops)
