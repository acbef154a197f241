"""The experiment with a scan in log space: it is the same function, and both are compared with float64."""

import torch

from experiments import log_space_gradient
from mmvisiongru.models import VisionGRU
from mmvisiongru.models.layers import MinGRU2D


def test_mixer_in_log_space_is_the_mixer():
    torch.manual_seed(0)
    paths = ('row', 'row_reverse', 'column', 'column_reverse')
    mixer = MinGRU2D(6, paths=paths, backend='reference').double()
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    cotangent = torch.randn_like(x)
    found = {}
    for scan in log_space_gradient.SCANS:
        log_space_gradient.use_scan(mixer, scan)
        mixer.zero_grad()
        out = mixer(x)
        out.backward(cotangent)
        found[scan] = [out.detach(), *(p.grad.clone() for p in mixer.parameters())]
    torch.testing.assert_close(found['log'], found['linear'], rtol=1e-10, atol=1e-12)
    # Another computation, so another rounding.
    assert not torch.equal(found['log'][0], found['linear'][0])


class Loss(torch.nn.Module):
    """The interface that the experiment needs of a model."""

    def __init__(self):
        super().__init__()
        self.backbone = VisionGRU(arch=dict(embed_dims=[8, 16], depths=[1, 1]), out_indices=(0, 1))

    def data_preprocessor(self, batch, training):
        return batch

    def loss(self, x, weights):
        return dict(loss=sum((w * out).mean() for w, out in zip(weights, self.backbone(x), strict=True)))


def test_errors_are_against_float64_and_the_model_does_not_change():
    torch.manual_seed(0)
    model = Loss()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batch = dict(inputs=torch.randn(1, 3, 32, 32), data_samples=[1.0, 2.0])
    for row in log_space_gradient.compare_gradients(model, batch).values():
        assert 0.9999 < row['cosine'] <= 1 + 1e-12
        assert 0 < row['error_linear'] < 1e-4
        assert 0 < row['error_log'] < 1e-2
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())
