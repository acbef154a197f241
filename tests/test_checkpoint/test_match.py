"""Whether a checkpoint fits: ``load_from``, testing, and ``init_cfg=dict(type='Pretrained')``."""

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn

from mmvisiongru.checkpoint import check_weights, load_weights, read_checkpoint
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
    got = model.state_dict()
    assert got.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize('wrap', [lambda s: s, lambda s: dict(state_dict=s)], ids=['plain', 'wrapped'])
@pytest.mark.parametrize(
    ('stored', 'options'),
    [
        ('', {}),
        ('backbone.', dict(prefix='backbone.')),
        ('backbone.', dict(prefix='backbone')),
        ('model.backbone.', dict(prefix='model.backbone.')),
        # As DistributedDataParallel saves them.
        ('module.', {}),
    ],
)
def test_pretrained_weights_are_loaded(tmp_path, stored, options, wrap):
    state = small().state_dict()
    torch.save(wrap(prefixed(state, stored) | {'backbone_2.x': torch.zeros(1)}), tmp_path / 'a.pth')
    assert_has(pretrained(tmp_path / 'a.pth', **options), state)


def test_pretrained_in_a_list(tmp_path):
    state = small().state_dict()
    torch.save(state, tmp_path / 'a.pth')
    constant = dict(type='Constant', layer='Conv2d', val=0.5)
    model = small(seed=1, init_cfg=[dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth')), constant])
    model.init_weights()
    assert_has(model, state)
    model = small(init_cfg=constant)
    model.init_weights()
    assert model.stem.conv1.weight.eq(0.5).all()


@pytest.mark.parametrize(
    ('stored', 'options', 'arch'),
    [
        ('backbone.', {}, SMALL),
        ('', dict(prefix='backbone.'), SMALL),
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
    """Keys that differ are logged, and keep their values."""
    state = small().state_dict()
    del state['stem.norm1.bias']
    state |= {'stem.norm2.bias': torch.zeros(7), 'stem.extra': torch.zeros(1)}
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    logged, handler = [], logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    MMLogger.get_current_instance().addHandler(handler)
    got = pretrained(tmp_path / 'a.pth').state_dict()
    MMLogger.get_current_instance().removeHandler(handler)
    for key in ('stem.norm1.bias', 'stem.norm2.bias', 'stem.extra'):
        assert any(key in text for text in logged)
    untouched = small(seed=1).state_dict()
    for name, value in got.items():
        fits = name in state and state[name].shape == value.shape
        assert torch.equal(value, state[name] if fits else untouched[name]), name


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.norm(self.fc(inputs))


@pytest.fixture
def saved(tmp_path):
    """Saves weights and gives the checkpoint."""

    def save(weights: dict):
        torch.save(weights, tmp_path / 'a.pth')
        return read_checkpoint(str(tmp_path / 'a.pth'))

    return save


def test_weights_that_fit(saved):
    weights = Model().state_dict()
    # Older files lack it.
    del weights['norm.num_batches_tracked']
    model = Model()
    assert load_weights(model, saved(weights)).path.endswith('a.pth')
    assert torch.equal(model.fc.weight, weights['fc.weight'])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'fc.bias': None}, 'missing fc.bias'),
        ({'fc.more': torch.zeros(2)}, 'unexpected fc.more'),
        ({'fc.bias': torch.zeros(5)}, r'shape of fc.bias: \(5,\) in the file, \(2,\) in the model'),
    ],
)
def test_weights_that_fit_in_part(saved, change, message):
    weights = {k: v for k, v in (Model().state_dict() | change).items() if v is not None}
    with pytest.raises(InputError, match=rf'a\.pth .*{message}$'):
        check_weights(Model(), saved(weights))


@pytest.mark.parametrize('coverage', [None, 0.0])
@pytest.mark.parametrize('name', ['vig.fc', 'fc.bias'])
def test_weights_of_which_none_fits(saved, coverage, name):
    with pytest.raises(InputError, match=rf'no key of the model.*{name}'):
        check_weights(Model(), saved({name: torch.zeros(1)}), coverage)


def test_stated_coverage(saved):
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
