"""Mixed precision without a GPU."""

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from mmvisiongru.errors import InputError
from mmvisiongru.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's AmpOptimWrapper on a CPU, which it refuses: bfloat16 by autocast, and a loss scaler.

    ``tools/train.py`` puts it in the place of AmpOptimWrapper where there is no GPU.

    Args:
        loss_scale (str | float | dict): As AmpOptimWrapper's.
        dtype (str, optional): bfloat16, the only one that a CPU has autocast for.
        **kwargs: As OptimWrapper's.
    """

    def __init__(self, loss_scale='dynamic', dtype: str | None = None, **kwargs):
        if dtype not in (None, 'bfloat16', torch.bfloat16):
            raise InputError(
                f'optim_wrapper.dtype is {dtype}, and a CPU has bfloat16 alone; '
                'set --cfg-options optim_wrapper.dtype=bfloat16'
            )
        # Not of AmpOptimWrapper, which asks for a GPU.
        OptimWrapper.__init__(self, **kwargs)
        settings = loss_scale if isinstance(loss_scale, dict) else {}
        if not isinstance(loss_scale, (int, float, dict)) and loss_scale != 'dynamic':
            raise InputError(
                f"optim_wrapper.loss_scale must be a number, a dict or 'dynamic', got {loss_scale!r}"
            )
        fixed = isinstance(loss_scale, (int, float))
        self._scale_update_param = loss_scale if fixed else None
        self.loss_scaler = torch.amp.GradScaler(
            'cpu', **(dict(init_scale=float(loss_scale)) if fixed else settings)
        )
        self.cast_dtype = torch.bfloat16
