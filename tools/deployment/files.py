"""Write a model as a file of ONNX, and quantise it."""

import json
import logging

import onnx
from onnxruntime.quantization import quantize_dynamic

from mmvisiongru.errors import InputError

PER_BATCH = (
    'activations share one scale per batch, so the result for an image depends on the others in its batch; '
    'feed one image at a time to avoid that'
)


def save(model: onnx.ModelProto, path: str, metadata: dict[str, str]) -> None:
    """Write a model with its weights and metadata as one file."""
    onnx.helper.set_model_props(model, metadata)
    try:
        onnx.save(model, path)
    except ValueError as error:
        raise InputError(f'{path}: one file of ONNX holds 2 GB, the model is larger ({error})') from error


def quantize(path: str, out: str) -> None:
    """Write ``path`` with the weights of its matrix products in 8 bits; activations follow at run time."""
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    metadata['notes'] = json.dumps([*json.loads(metadata.get('notes', '[]')), PER_BATCH])
    onnx.helper.set_model_props(model, metadata)
    # The quantiser transposes some weights and then rejects the shapes noted for them.
    del model.graph.value_info[:]
    # It advises to simplify the graph first, which the exporter has done.
    logging.disable(logging.WARNING)
    try:
        # Only products with a constant on the right, which are weights.
        options = dict(MatMulConstBOnly=True, EnableSubgraph=True)
        quantize_dynamic(model, out, ['MatMul'], per_channel=True, extra_options=options)
    finally:
        logging.disable(logging.NOTSET)
