"""The experiment with a scan in log space: it is the same function."""

import torch

from experiments import log_space_gradient
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
