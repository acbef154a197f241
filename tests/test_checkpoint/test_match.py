"""Whether a checkpoint fits: ``load_from``, testing, and ``init_cfg=dict(type='Pretrained')``."""

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn

from mmvisiongru import checkpoint
from mmvisiongru.checkpoint import Checkpoint, check_weights, load_weights
from mmvisiongru.errors import InputError
from mmvisiongru.models import VisionGRU

SMALL = dict(embed_dims=[8, 12], depths=[1, 1])


def small(seed=0, arch=SMALL, **options):
    torch.manual_seed(seed)
    return VisionGRU(arch=arch, out_indices=(0, 1), **options)


def prefixed(state, prefix):
    return {prefix + k: v for k, v in state.items()}


def pretrained(path, **options):
    """A model of other weights that has taken those of the file."""
    model = small(seed=1, init_cfg=dict(type='Pretrained', checkpoint=str(path), **options))
    model.init_weights()
    return model


def assert_has(model, state):
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('stored', 'options'),
    [
        ('', {}),
        ('backbone.', dict(prefix='backbone.')),
        ('model.backbone.', dict(prefix='model.backbone')),
        # As DistributedDataParallel saves them.
        ('module.', {}),
    ],
)
def test_pretrained_weights_are_loaded(tmp_path, stored, options):
    state = small().state_dict()
    content = prefixed(state, stored) | {'backbone_2.x': torch.zeros(1)}
    for wrapped in (content, dict(state_dict=content)):
        torch.save(wrapped, tmp_path / 'a.pth')
        assert_has(pretrained(tmp_path / 'a.pth', **options), state)


@pytest.mark.parametrize(
    ('stored', 'options', 'arch'),
    [
        ('vig.', dict(prefix='backbone.'), SMALL),
        # A prefix ends at a dot: 'back' is no part of 'backbone.'.
        ('backbone.', dict(prefix='back'), SMALL),
        # Every name is there, but no shape fits.
        ('', {}, dict(embed_dims=[10, 14], depths=[1, 1])),
    ],
    ids=str,
)
def test_pretrained_without_a_match_is_an_error(tmp_path, stored, options, arch):
    torch.save(dict(state_dict=prefixed(small(arch=arch).state_dict(), stored)), tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), **options)
    backbone = dict(type='mmvisiongru.VisionGRU', arch=SMALL, out_indices=(1,), init_cfg=init_cfg)
    model = MODELS.build(dict(type='mmpretrain.ImageClassifier', backbone=backbone))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=r'a\.pth.*init_cfg.*stem\.conv1\.weight') as info:
        model.init_weights()
    assert '\n' not in str(info.value)
    assert_has(model, before)


def test_pretrained_that_fits_in_part(tmp_path):
    """Keys that differ keep their values."""
    state, untouched = small().state_dict(), small(seed=1).state_dict()
    del state['stem.norm1.bias']
    state |= {'stem.norm2.bias': torch.zeros(7), 'stem.extra': torch.zeros(1)}
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    for name, value in pretrained(tmp_path / 'a.pth').state_dict().items():
        fits = name in state and state[name].shape == value.shape
        assert torch.equal(value, state[name] if fits else untouched[name]), name


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)


def saved(weights: dict) -> Checkpoint:
    return Checkpoint('a.pth', weights)


def test_weights_that_fit(monkeypatch):
    monkeypatch.setattr(Model, 'get_extra_state', lambda model: 'no tensor')
    monkeypatch.setattr(Model, 'set_extra_state', lambda model, state: setattr(model, 'state', state))
    weights, model = Model().state_dict(), Model()
    # Older files lack it.
    del weights['norm.num_batches_tracked']
    load_weights(model, saved(weights))
    assert torch.equal(model.fc.weight, weights['fc.weight'])
    assert model.state == 'no tensor'


def test_stated_coverage():
    """Five of the six keys that count; one more than the model has does no harm."""
    weights = {**Model().state_dict(), 'fc.bias': torch.zeros(5), 'more': torch.zeros(1)}
    lines = ['shape of fc.bias: (5,) in the file, (2,) in the model', 'unexpected more']
    assert check_weights(Model(), saved(weights), coverage=0.8) == lines
    with pytest.raises(InputError, match=r'5 of the 6 keys .*load_coverage=0\.9.* shape of fc\.bias'):
        check_weights(Model(), saved(weights), coverage=0.9)
    del weights['fc.bias']
    with pytest.raises(InputError, match=r'5 of the 6 keys .* missing fc\.bias'):
        check_weights(Model(), saved(weights), coverage=1.0)
    weights['fc.bias'] = torch.zeros(2)
    assert check_weights(Model(), saved(weights), 1.0) == lines[1:]


class Translating(BaseModule):
    """Loads a weight of another name, as some backbones of mmpretrain do."""

    def init_weights(self):
        self.own = nn.Parameter(torch.load(self.init_cfg['checkpoint'])['other'])


def test_a_part_that_translates_names_is_left_to_itself(tmp_path):
    torch.save({'other': torch.ones(1)}, tmp_path / 'a.pth')
    model = Translating(dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth')))
    with checkpoint.pretrained(model):
        model.init_weights()
    assert model.own == 1
