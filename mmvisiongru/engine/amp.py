"""Mixed precision without a GPU."""

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from mmvisiongru.errors import InputError
from mmvisiongru.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's AmpOptimWrapper on a CPU, which it refuses: bfloat16 by autocast, and a loss scaler.

    ``tools/train.py`` replaces AmpOptimWrapper by this where there is no GPU.

    Args:
        loss_scale (str | float | dict): As AmpOptimWrapper's.
        dtype (str, optional): Only bfloat16, which is what a CPU has autocast for.
        **kwargs: As OptimWrapper's.
    """

    def __init__(self, loss_scale='dynamic', dtype: str | None = None, **kwargs):
        if dtype not in (None, 'bfloat16', torch.bfloat16):
            raise InputError(f'a CPU has bfloat16 only: set optim_wrapper.dtype=bfloat16, not {dtype}')
        # Not that of AmpOptimWrapper, which asks for a GPU.
        OptimWrapper.__init__(self, **kwargs)
        fixed = isinstance(loss_scale, (int, float))
        settings = dict(init_scale=float(loss_scale)) if fixed else loss_scale
        if not isinstance(settings, dict) and settings != 'dynamic':
            raise InputError(f'optim_wrapper.loss_scale={loss_scale!r} is no number, dict or "dynamic"')
        self._scale_update_param = loss_scale if fixed else None
        self.loss_scaler = torch.amp.GradScaler('cpu', **(settings if isinstance(settings, dict) else {}))
        self.cast_dtype = torch.bfloat16
