"""The runtimes of ONNX files leave the process as it was."""

import ctypes

import numpy as np
import pytest

from mmvisiongru.deployment.runtimes import has_openvino, openvino

onnx = pytest.importorskip('onnx', reason='ONNX export needs requirements/deploy.txt')


class SignalStack(ctypes.Structure):
    """stack_t of sigaltstack(2)."""

    _fields_ = (('address', ctypes.c_void_p), ('flags', ctypes.c_int), ('size', ctypes.c_size_t))


def signal_stack() -> int | None:
    """Where the handlers of signals run in this thread."""
    stack = SignalStack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.address


@pytest.mark.skipif(not has_openvino(), reason='OpenVINO is not installed')
def test_openvino_changes_the_stack_of_signals_once(tmp_path):
    """Two Cores that are destroyed leave a freed stack, and the next signal crashes the process."""
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node('Neg', ['images'], ['out'])
    ends = [[helper.make_tensor_value_info(name, float32, [1, 2])] for name in ('images', 'out')]
    opset = helper.make_opsetid('', 17)
    model = helper.make_model(helper.make_graph([node], 'neg', *ends), opset_imports=[opset], ir_version=8)
    path = str(tmp_path / 'neg.onnx')
    onnx.save(model, path)
    openvino(path)
    before = signal_stack()
    runs = [openvino(path), openvino(path)]
    assert signal_stack() == before
    x = np.array([[1, -2]], np.float32)
    for run in runs:
        np.testing.assert_array_equal(run(x)['out'], -x)
