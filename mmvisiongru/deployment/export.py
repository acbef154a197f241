"""From a module to a file that ONNX Runtime is known to compute as torch does."""

import logging
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn
from torch.onnx import OnnxExporterError

from mmvisiongru.errors import InputError
from mmvisiongru.inference import optimize_for_inference

from .resolution import AtOwnResolution
from .translations import translation_table

# GELU is an operator from here on.
OPSET = 20
# A batch of 1 would be taken as a constant; the sides leave several tokens to the last stage.
EXAMPLE = (2, 3, 256, 320)


def export(module: nn.Module, outputs: Sequence[str], size: tuple[int, int] | None = None) -> onnx.ModelProto:
    """Translate a module that takes images (B, 3, H, W), named 'images'.

    Args:
        module (nn.Module): In evaluation mode, on the CPU; gives a tensor for each of ``outputs``.
        outputs (Sequence[str]): Their names.
        size (tuple, optional): Height and width of the only image, B = 1, that the graph takes; without it
            B, H and W are free.

    Raises:
        InputError: A layer cannot be exported. The message ends with the reason of the exporter.
    """
    module = deepcopy(module)
    optimize_for_inference(module, target='onnx')
    shapes = None if size else ({0: 'batch', 2: 'height', 3: 'width'},)
    # The matrices of a fixed size become constants, and quantize() would take them for weights.
    context = nullcontext() if size else AtOwnResolution()
    try:
        with warnings.catch_warnings(), torch.no_grad(), context:
            # Those of the exporter about itself; what matters is verified.
            warnings.simplefilter('ignore')
            program = torch.onnx.export(
                module,
                (torch.zeros((1, 3, *size) if size else EXAMPLE),),
                input_names=['images'],
                output_names=list(outputs),
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=shapes,
                custom_translation_table=translation_table(),
                verbose=False,
            )
    except OnnxExporterError as error:
        raise InputError(f'the model cannot be exported: {_reason(error)}') from error
    return program.model_proto


def save(model: onnx.ModelProto, path: str, metadata: dict[str, str]) -> None:
    """Write a model, weights and all, as one file that carries the metadata."""
    onnx.helper.set_model_props(model, metadata)
    try:
        onnx.save(model, path)
    except ValueError as error:
        raise InputError(f'{path}: one file of ONNX holds 2 GB, the model is larger ({error})') from error


def _reason(error: BaseException) -> str:
    """The line that says most: the first one of the error at the bottom."""
    while error.__cause__:
        error = error.__cause__
    lines = str(error).strip().splitlines() or ['no reason given']
    return f'{type(error).__name__}: {lines[0][:300]}'


def quantize(path: str, out: str) -> None:
    """Write ``path`` with the weights of its matrix products in 8 bits; their inputs follow at run time."""
    model = onnx.load(path)
    # It transposes some weights and then finds that they are not of the shapes noted for them.
    del model.graph.value_info[:]
    # It advises to simplify the graph first, which the exporter has done.
    logging.disable(logging.WARNING)
    try:
        # Products of two maps, and those with the matrices of pooling, stay as they are.
        quantize_dynamic(
            model,
            out,
            op_types_to_quantize=['MatMul'],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options=dict(MatMulConstBOnly=True, EnableSubgraph=True),
        )
    finally:
        logging.disable(logging.NOTSET)
