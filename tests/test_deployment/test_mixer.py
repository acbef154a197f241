"""Mixers as they are exported compute what the layers do; a changed one is exported as it is."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from mmvisiongru.models.layers import MLP, MinGRU2D

onnxruntime, _ = (
    pytest.importorskip(name, reason='ONNX export needs requirements/deploy.txt')
    for name in ('onnxruntime', 'onnxscript')
)


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


@pytest.mark.parametrize(
    ('paths', 'candidate'),
    [
        (('row', 'row_reverse'), 'g'),
        (('column_reverse',), 'linear'),
        (('row_reverse', 'column', 'row', 'column_reverse'), 'g'),
    ],
)
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
        found = torch.from_numpy(session.run(None, {'images': x.numpy()})[0])
        assert (found - expected).abs().max() <= 2e-6 * expected.abs().max(), size


class TwoMixers(nn.Module):
    """Images (B, 3, H, W) through two mixers; a hook keeps the second one from being converted."""

    def __init__(self):
        super().__init__()
        self.mixer, self.other = layers().mixer, layers().mixer
        self.other.register_forward_hook(lambda layer, args, out: 2 * out)

    def forward(self, images):
        x = torch.cat([images, 2 - images], 1).permute(0, 2, 3, 1)
        return self.mixer(x), self.other(x)


def test_both_forms_of_a_mixer_in_one_graph():
    """ONNX tells functions apart by their names alone."""
    from mmvisiongru.deployment.export import export

    model = TwoMixers().eval()
    session = onnxruntime.InferenceSession(export(model, ['one', 'two']).SerializeToString())
    x = 2 * torch.randn((2, 3, 5, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = deepcopy(model).double()(x.double())
    for a, b in zip(session.run(None, {'images': x.numpy()}), expected, strict=True):
        assert (torch.from_numpy(a) - b).abs().max() <= 2e-6 * b.abs().max()
