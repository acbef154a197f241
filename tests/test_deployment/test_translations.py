"""Operators and mixers in ONNX against torch, at sizes other than the example's, and what runtimes leave."""

import ctypes
import subprocess
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from mmvisiongru.models import VRWKV
from mmvisiongru.models.layers import MLP, MinGRU2D
from mmvisiongru.ops import bi_wkv, mingru_scan_2d
from tests.harness.scans import error
from tests.harness.wkv import by_sums, inputs
from tools.deployment.runtimes import has_openvino, openvino

onnx, onnxruntime, _ = (
    pytest.importorskip(name, reason='ONNX export needs requirements/deploy.txt')
    for name in ('onnx', 'onnxruntime', 'onnxscript')
)


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function, **options):
        super().__init__()
        self.function, self.options = function, options

    def forward(self, *inputs):
        return self.function(*inputs, **self.options)


def to_session(module, *example):
    """Export with all but the last size free; the graph must hold standard operators only."""
    return onnxruntime.InferenceSession(to_graph(module, *example).SerializeToString())


def to_graph(module, *example, size=torch.export.Dim.DYNAMIC):
    from mmvisiongru.deployment.translations import translation_table

    free = tuple(dict.fromkeys(range(x.dim() - 1), size) for x in example)
    program = torch.onnx.export(
        module.eval(),
        example,
        dynamo=True,
        opset_version=20,
        dynamic_shapes=(free,),
        custom_translation_table=translation_table(),
        verbose=False,
    )
    proto = program.model_proto
    assert [(x.domain, x.version) for x in proto.opset_import] == [('', 20)]
    assert not proto.functions
    return proto


def run(session, *inputs):
    names = [x.name for x in session.get_inputs()]
    return torch.from_numpy(session.run(None, dict(zip(names, map(np.asarray, inputs), strict=True)))[0])


each_scan = pytest.mark.parametrize(
    ('paths', 'candidate'),
    [(('column_reverse',), 'linear'), (('row_reverse', 'column', 'row', 'column_reverse'), 'g')],
)


@each_scan
def test_scan_of_maps(paths, candidate):
    options, channels = dict(paths=paths, candidate=candidate), len(paths) * 2 * 3
    session = to_session(Call(mingru_scan_2d, **options), torch.zeros(2, 4, 5, channels))
    generator = torch.Generator().manual_seed(0)
    # On long lines the product of the 1 - z falls to 0, and h must not.
    for size in ((1, 1, 1), (3, 1, 7), (1, 9, 1), (2, 6, 11), (1, 2, 3000)):
        x = 3 * torch.randn((*size, channels), generator=generator)
        expected = mingru_scan_2d(x.double(), backend='reference', **options)
        torch.testing.assert_close(run(session, x), expected.float(), rtol=2e-6, atol=2e-6)


@pytest.mark.skipif(not has_openvino(), reason='OpenVINO is not installed')
def test_scan_of_fixed_size_in_openvino(tmp_path):
    """OpenVINO runs a loop whose body has a known size by another program than one of any size."""
    x = 3 * torch.randn(1, 5, 7, 12, generator=torch.Generator().manual_seed(0))
    options = dict(paths=('row', 'column_reverse'), candidate='linear')
    graph = to_graph(Call(mingru_scan_2d, **options), x, size=torch.export.Dim.STATIC)
    (tmp_path / 'scan.onnx').write_bytes(graph.SerializeToString())
    (found,) = openvino(str(tmp_path / 'scan.onnx'))(x.numpy()).values()
    expected = mingru_scan_2d(x.double(), backend='reference', **options).float()
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=2e-6, atol=2e-6)


LARGER_TWICE = """
import sys, torch
from tools.deployment.runtimes import openvino
from mmvisiongru.ops import mingru_scan_2d
run = openvino(sys.argv[1])
for width in (128, 171, 171):
    x = 3 * torch.randn((1, 128, width, 576), generator=torch.Generator().manual_seed(0))
    (found,) = run(x.numpy()).values()
    torch.testing.assert_close(torch.from_numpy(found), mingru_scan_2d(x), rtol=2e-6, atol=4e-6)
"""


@pytest.mark.skipif(not has_openvino(), reason='OpenVINO is not installed')
def test_a_larger_map_twice_in_openvino(tmp_path):
    """Loops compiled for any size read where earlier maps were: a wrong result, or the process dies."""
    graph = to_graph(Call(mingru_scan_2d), torch.zeros(2, 4, 5, 576))
    (tmp_path / 'scan.onnx').write_bytes(graph.SerializeToString())
    command = [sys.executable, '-c', LARGER_TWICE, str(tmp_path / 'scan.onnx')]
    child = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert child.returncode == 0, child.stderr


def test_bi_wkv():
    def average(k, v):
        # A decay in a graph belongs to the model, and is divided by the tokens of the map at hand.
        return bi_wkv(w.float() / k.size(1), u.float() / k.size(1), k, v)

    # Decays as in a trained model, then harder ones with louder keys.
    ends = ((-5.0, 3.0), (-15.0, 15.0))
    w, u = map(torch.cat, zip(*(inputs(1, 1, 5, torch.float64, decay)[:2] for decay in ends), strict=True))
    graph = to_graph(Call(average), torch.zeros(2, 6, 10), torch.zeros(2, 6, 10))
    assert not {'Loop', 'Scan'} & {node.op_type for node in graph.graph.node}
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    for size in ((1, 1), (3, 2), (1, 63), (2, 64), (1, 65), (2, 196), (1, 4096)):
        k, v = inputs(*size, 10)[2:4]
        k[..., 5:] *= 4
        tensors = (w.float().double() / size[1], u.float().double() / size[1], k.double(), v.double())
        pairs = zip(run(session, k, v).split(5, 2), by_sums(*tensors).split(5, 2), strict=True)
        assert all(error(*pair, 'max') <= 2e-6 for pair in pairs), size


def test_released_distance_is_refused_in_words():
    from torch.onnx import OnnxExporterError

    w, u, k, v, _ = inputs(2, 6, 5)
    with pytest.raises(OnnxExporterError) as raised:
        to_graph(Call(lambda k, v: bi_wkv(w, u, k, v, distance='released')), k, v)
    cause = raised.value
    while cause.__cause__:
        cause = cause.__cause__
    assert str(cause).startswith("bi_wkv with distance='released' has no translation; 'paper' has")


def test_vision_rwkv_at_other_sizes():
    from mmvisiongru.deployment.export import export

    torch.manual_seed(0)
    arch = dict(embed_dims=18, depth=2, post_norm=True, layer_scale=0.5)
    model = nn.Sequential(VRWKV(arch, img_size=64, patch_size=8), Call(lambda maps: maps[-1])).eval()
    for param in model.parameters():
        nn.init.normal_(param, mean=float(param.ndim == 1), std=0.3)
    session = onnxruntime.InferenceSession(export(model, ['map']).SerializeToString())
    model.double()
    # Patches cut by the border, one patch, more than a chunk of tokens, several images.
    for size in ((1, 61, 45), (2, 33, 64), (1, 1, 1), (1, 200, 120)):
        x = torch.randn((size[0], 3, *size[1:]), generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            assert error(run(session, x), model(x.double()), 'max') <= 2e-6, size


# ---- mixers; a changed one is exported as it is


class Layers(nn.Module):
    """Images (B, 3, H, W) through a mixer and an MLP."""

    def __init__(self, dim=6, **options):
        super().__init__()
        self.mixer, self.mlp = MinGRU2D(dim, **options), MLP(dim, 4)

    def forward(self, images):
        x = torch.cat([images, 2 - images], 1).permute(0, 2, 3, 1)
        return (self.mlp(x + self.mixer(x)),)


def layers(**options):
    torch.manual_seed(0)
    model = Layers(**options).eval()
    for p in model.parameters():
        # Gates far from 0 too: some lines forget everything, some keep everything.
        nn.init.normal_(p, std=1.0)
    return model


@each_scan
def test_values_at_other_sizes(paths, candidate):
    from mmvisiongru.deployment.export import export

    model = layers(paths=paths, candidate=candidate)
    kept = dict(model.named_modules())
    graph = export(model, ['map'])
    assert dict(model.named_modules()) == kept
    assert [(x.domain, x.version) for x in graph.opset_import] == [('', 20)]
    names = [node.op_type for node in graph.graph.node]
    assert names.count('Scan') == 3 * len(paths)
    # Each path, its gate and its candidate have a product of their own: nothing copies the wide maps.
    assert names.count('MatMul') == 3 * len(paths) + 2
    assert not {'Split', 'Slice'} & set(names)
    # To channels-last, which ONNX Runtime does with the convolution; one that goes further is slow.
    (conv,) = (node for node in graph.graph.node if node.op_type == 'Conv')
    after = [node for node in graph.graph.node if conv.output[0] in node.input]
    assert [tuple(node.attribute[0].ints) for node in after] == [(0, 2, 3, 1)]
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    for size in ((1, 1, 1), (3, 1, 7), (1, 9, 1), (2, 6, 11), (1, 2, 1000)):
        x = 2 * torch.randn((size[0], 3, *size[1:]), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            (expected,) = deepcopy(model).double()(x.double())
        assert error(run(session, x), expected, 'max') <= 2e-6, size


# ---- runtimes


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
    before, runs = signal_stack(), [openvino(path), openvino(path)]
    assert signal_stack() == before
    x = np.array([[1, -2]], np.float32)
    for run in runs:
        np.testing.assert_array_equal(run(x)['out'], -x)
