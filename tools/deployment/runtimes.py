"""ONNX files as functions, in each installed runtime."""

from functools import cache, lru_cache
from importlib.util import find_spec

import numpy as np
import torch

from mmvisiongru.deployment.verify import Run
from mmvisiongru.errors import InputError


def onnx_runtime(path: str) -> Run:
    """A file in ONNX Runtime, on as many threads as torch uses: a function from images to outputs by name.

    It raises InputError for images of another size than that of the file, if that has one.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its warnings are about its own optimisations.
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]
    # Names stand for what is free.
    wanted = session.get_inputs()[0].shape

    def run(images):
        if any(isinstance(n, int) and n != m for n, m in zip(wanted, images.shape, strict=True)):
            takes, got = (' x '.join(map(str, shape)) for shape in (wanted, images.shape))
            raise InputError(f'{path} takes images of {takes}, got {got}; set --shape to these or omit it')
        return dict(zip(names, session.run(None, {'images': images}), strict=True))

    return run


def openvino(path: str, precision: str = 'f32') -> Run:
    """A file in OpenVINO, compiled again whenever the shape of the images changes, for 1 to 2 s.

    Compiled for any shape, loops of OpenVINO 2026.4.1 keep addresses of maps that have moved since. When two
    images of one size follow a smaller one, the second result is wrong or the process crashes. ``precision``
    is stated because the default on a processor with bf16 is bf16.
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
    """The only Core of this process.

    Each Core gives its thread a stack for signal handlers. When two are destroyed, the freed stack of the
    first may be restored, and the next signal crashes the process, as SIGCHLD of a DataLoader worker.
    """
    from openvino import Core

    return Core()


def has_openvino() -> bool:
    """Whether OpenVINO is installed, which is optional."""
    return find_spec('openvino') is not None
