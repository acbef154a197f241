"""Operators in ONNX against the reference, at sizes other than the example's."""

import numpy as np
import pytest
import torch
from torch import nn

from mmvisiongru.ops import mingru_scan, mingru_scan_2d

onnxruntime, _ = (
    pytest.importorskip(name, reason='ONNX export needs requirements/deploy.txt')
    for name in ('onnxruntime', 'onnxscript')
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
    from mmvisiongru.deployment.translations import translation_table

    free = tuple(dict.fromkeys(range(x.dim() - 1), torch.export.Dim.DYNAMIC) for x in example)
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
    return onnxruntime.InferenceSession(proto.SerializeToString())


def run(session, *inputs):
    names = [x.name for x in session.get_inputs()]
    return torch.from_numpy(session.run(None, dict(zip(names, map(np.asarray, inputs), strict=True)))[0])


@pytest.mark.parametrize(
    ('paths', 'candidate'),
    [
        (('row', 'row_reverse'), 'g'),
        (('column_reverse',), 'linear'),
        (('row_reverse', 'column', 'row', 'column_reverse'), 'g'),
    ],
)
def test_scan_of_maps(paths, candidate):
    options = dict(paths=paths, candidate=candidate)
    channels = len(paths) * 2 * 3
    session = to_session(Call(mingru_scan_2d, **options), torch.zeros(2, 4, 5, channels))
    generator = torch.Generator().manual_seed(0)
    # On long lines the product of the 1 - z goes down to 0, and must not take h along.
    for size in ((1, 1, 1), (3, 1, 7), (1, 9, 1), (2, 6, 11), (1, 2, 3000)):
        x = 3 * torch.randn((*size, channels), generator=generator)
        expected = mingru_scan_2d(x.double(), backend='reference', **options)
        torch.testing.assert_close(run(session, x), expected.float(), rtol=2e-6, atol=2e-6)


def test_scan_of_sequences():
    def both(gate, hidden, backend='auto'):
        return torch.cat([mingru_scan(gate, hidden, reverse=r, backend=backend) for r in (False, True)], 2)

    session = to_session(Call(both), torch.zeros(2, 6, 3), torch.zeros(2, 6, 3))
    generator = torch.Generator().manual_seed(1)
    for size in ((1, 1), (3, 17)):
        gate, hidden = 3 * torch.randn((2, *size, 3), generator=generator)
        expected = both(gate.double(), hidden.double(), 'reference')
        torch.testing.assert_close(run(session, gate, hidden), expected.float(), rtol=2e-6, atol=2e-6)


def test_adaptive_pooling():
    pool = nn.AdaptiveAvgPool2d((3, 6))
    # Channels last, as the sizes before them are the free ones.
    session = to_session(Call(lambda x: pool(x.permute(0, 3, 1, 2))), torch.zeros(2, 12, 18, 3))
    for size in ((1, 1, 1), (2, 5, 7), (1, 12, 4), (1, 31, 18)):
        x = torch.randn((*size, 3), generator=torch.Generator().manual_seed(3))
        expected = pool(x.permute(0, 3, 1, 2).double()).float()
        torch.testing.assert_close(run(session, x), expected, rtol=1e-6, atol=1e-6)
