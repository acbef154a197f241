"""Translate a module to ONNX."""

import warnings
from collections.abc import Sequence
from copy import deepcopy

import onnx
import torch
from torch import nn
from torch.onnx import OnnxExporterError

from mmvisiongru.deployment import check_stack
from mmvisiongru.errors import InputError, in_one_line
from mmvisiongru.inference import optimize_for_inference

from .translations import translation_table

# The first one in which GELU is an operator.
OPSET = 20
# The exporter takes a batch of 1 for a constant. The sides leave several tokens to the last stage.
EXAMPLE = (2, 3, 256, 320)


def export(module: nn.Module, outputs: Sequence[str], size: tuple[int, int] | None = None) -> onnx.ModelProto:
    """Translate a module that takes images (B, 3, H, W), named 'images'; InputError gives the reason if not.

    Args:
        module (nn.Module): In evaluation mode, on the CPU; gives a tensor for each of ``outputs``.
        outputs (Sequence[str]): Their names.
        size (tuple, optional): Height and width of the only image, B = 1, that the graph takes. Default: any.
    """
    check_stack()
    module = deepcopy(module)
    optimize_for_inference(module, target='onnx')
    example = torch.zeros((1, 3, *size) if size else EXAMPLE)
    options = dict(input_names=['images'], output_names=list(outputs), opset_version=OPSET)
    options.update(dynamo=True, verbose=False, custom_translation_table=translation_table())
    if not size:
        options['dynamic_shapes'] = ({0: 'batch', 2: 'height', 3: 'width'},)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # The exporter warns about itself; the file is compared with torch afterwards.
            warnings.simplefilter('ignore')
            program = torch.onnx.export(module, (example,), **options)
    except OnnxExporterError as error:
        cause = error
        while cause.__cause__:
            cause = cause.__cause__
        raise InputError(f'the model cannot be exported: {in_one_line(cause)}') from error
    return program.model_proto
