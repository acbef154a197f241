"""Files of ONNX in the runtimes that may be here."""

from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec

import numpy as np
import torch

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def onnx_runtime(path: str) -> Run:
    """A file in ONNX Runtime, on as many threads as torch has: images to outputs by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Warnings are about its own optimisations.
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(None, {'images': images}), strict=True))


def openvino(path: str, precision: str = 'f32') -> Run:
    """A file in OpenVINO, compiled for each shape of images that comes.

    Compiled for any shape, loops of OpenVINO 2026.4.1 keep addresses of maps that have moved since. When two
    images of one size follow a smaller one, the second result is wrong or the process dies. Each change of
    the shape costs 1 to 2 s.

    Where the processor has bf16, that is what OpenVINO computes in unless told.
    """
    settings = dict(INFERENCE_PRECISION_HINT=precision, INFERENCE_NUM_THREADS=torch.get_num_threads())
    model = _openvino_core().read_model(path)
    names = [output.any_name for output in model.outputs]
    is_free = model.input(0).partial_shape.is_dynamic

    @lru_cache(maxsize=1)
    def compiled(shape):
        if is_free:
            model.reshape(list(shape))
        return _openvino_core().compile_model(model, 'CPU', settings)

    def run(images):
        results = compiled(images.shape)(images).values()
        return {name: np.array(x) for name, x in zip(names, results, strict=True)}

    return run


@cache
def _openvino_core():
    """The one Core of this process.

    Each gives the thread that makes it a stack for signal handlers. When two go, that of the first may be
    put back though it is gone: the process then dies of the next signal that it handles, such as the SIGCHLD
    for which DataLoaders with workers set a handler.
    """
    from openvino import Core

    return Core()


def has_openvino() -> bool:
    """Whether OpenVINO, which nothing here requires, is installed."""
    return find_spec('openvino') is not None
