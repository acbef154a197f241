"""Let mmengine's FLOP counter, which mmseg's and mmpretrain's tools use, count the scan."""

from math import prod

from mmengine.analysis.complexity_analysis import _DEFAULT_SUPPORTED_FLOP_OPS
from mmengine.analysis.jit_handles import get_shape

from mmvisiongru.ops.mingru import FLOPS_PER_ELEMENT


def _scan_macs(inputs, outputs) -> int:
    # mmengine counts multiply-accumulates and calls them flops.
    return FLOPS_PER_ELEMENT // 2 * prod(get_shape(outputs[0]))


# Its counter takes further operators instance by instance only, and the tools make their own instance.
for _op in ('mingru_scan', 'mingru_scan_2d'):
    _DEFAULT_SUPPORTED_FLOP_OPS[f'mmvisiongru::{_op}'] = _scan_macs
