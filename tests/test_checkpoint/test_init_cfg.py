"""``init_cfg=dict(type='Pretrained')`` and the reading of checkpoints.

The name differs from that of the module, as pytest wants every file name once.
"""

import logging
import os

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.registry import MODELS

from mmvisiongru.checkpoint import load_checkpoint_file, state_dict_of, unfit_keys
from mmvisiongru.errors import InputError
from mmvisiongru.models.visiongru import VisionGRU

SMALL = dict(embed_dims=[8, 12], depths=[1, 1])


def small(seed=0, arch=SMALL, **options):
    torch.manual_seed(seed)
    return VisionGRU(arch=arch, out_indices=(0, 1), **options)


def prefixed(state, prefix):
    return {prefix + k: v for k, v in state.items()}


def pretrained(path, **options):
    """A model of other weights that has taken those of the file."""
    init_cfg = dict(type='Pretrained', checkpoint=str(path), **options)
    model = small(seed=1, init_cfg=init_cfg)
    model.init_weights()
    return model


def assert_has(model, state):
    got = model.state_dict()
    assert got.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(got[name], value), name


@pytest.fixture
def logged():
    """Records of mmengine's current logger."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.mark.parametrize(
    'wrap', [lambda s: s, lambda s: dict(state_dict=s, meta={})], ids=['plain', 'wrapped']
)
@pytest.mark.parametrize(
    ('stored', 'options'),
    [
        ('', {}),
        ('backbone.', dict(prefix='backbone.')),
        ('backbone.', dict(prefix='backbone')),
        ('model.backbone.', dict(prefix='model.backbone.')),
        # What DistributedDataParallel saves; mmengine's loader takes it off.
        ('module.', {}),
    ],
)
def test_weights_are_loaded(tmp_path, logged, stored, options, wrap):
    state = small().state_dict()
    torch.save(wrap(prefixed(state, stored)), tmp_path / 'a.pth')
    assert_has(pretrained(tmp_path / 'a.pth', **options), state)
    assert logged == []


def test_weights_beside_the_backbone_are_no_misfit(tmp_path, logged):
    state = small().state_dict()
    whole = {
        **prefixed(state, 'backbone.'),
        'head.fc.weight': torch.zeros(2, 3),
        'backbone_2.x': torch.zeros(1),
    }
    torch.save(dict(state_dict=whole), tmp_path / 'a.pth')
    assert_has(pretrained(tmp_path / 'a.pth', prefix='backbone.'), state)
    assert logged == []


def test_pretrained_among_several(tmp_path):
    state = small().state_dict()
    torch.save(state, tmp_path / 'a.pth')
    cfgs = [dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))]
    model = small(seed=1, init_cfg=cfgs)
    model.init_weights()
    assert_has(model, state)
    small(init_cfg=[dict(type='Constant', layer='Conv2d', val=0.5)]).init_weights()
    small(init_cfg=dict(type='Constant', layer='Conv2d', val=0.5)).init_weights()


@pytest.mark.parametrize(
    ('stored', 'options'),
    [
        ('backbone.', {}),
        ('', dict(prefix='backbone.')),
        ('vig.', dict(prefix='backbone.')),
        # A prefix ends at a dot: 'back' is no part of 'backbone.'.
        ('backbone.', dict(prefix='back')),
    ],
    ids=str,
)
def test_no_match_is_an_error(tmp_path, stored, options):
    torch.save(dict(state_dict=prefixed(small().state_dict(), stored)), tmp_path / 'a.pth')
    model = small(seed=1, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), **options))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r'a\.pth.*none.*stem\.conv1\.weight') as info:
        model.init_weights()
    assert '\n' not in str(info.value)
    assert_has(model, before)


def test_no_match_of_another_size_is_an_error(tmp_path):
    # Every name is there, no shape is: nothing at all would be loaded.
    torch.save(small(arch=dict(embed_dims=[10, 14], depths=[1, 1])).state_dict(), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'none.*\(5, 3, 3, 3\).*\(4, 3, 3, 3\)'):
        pretrained(tmp_path / 'a.pth')


def test_no_match_is_an_error_inside_a_model(tmp_path):
    torch.save(prefixed(small().state_dict(), 'backbone.'), tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    model = MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(type='mmvisiongru.VisionGRU', arch=SMALL, out_indices=(1,), init_cfg=init_cfg),
        )
    )
    with pytest.raises(ValueError, match='none'):
        model.init_weights()


@pytest.mark.parametrize(
    ('change', 'line'),
    [
        (lambda s: s.pop('stem.norm1.bias'), 'missing stem.norm1.bias'),
        (lambda s: s.update({'stem.extra': torch.zeros(1)}), 'unexpected stem.extra'),
        (
            lambda s: s.update({'stem.norm1.bias': torch.zeros(7)}),
            'shape of stem.norm1.bias: (7,) in the file, (4,) in the model',
        ),
    ],
    ids=['missing', 'unexpected', 'shape'],
)
def test_partial_match_names_the_keys(tmp_path, logged, change, line):
    state = small().state_dict()
    change(state)
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    model = pretrained(tmp_path / 'a.pth')
    (ours,) = [text for text in logged if 'a.pth' in text]
    assert line in ours.splitlines()[1].strip()
    assert len(ours.splitlines()) == 2, 'only what does not fit is listed'
    got, untouched = model.state_dict(), small(seed=1).state_dict()
    for name, value in got.items():
        fits = name in state and state[name].shape == value.shape
        assert torch.equal(value, state[name] if fits else untouched[name]), name


class Bomb:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize('options', [{}, dict(prefix='backbone.')], ids=str)
def test_a_crafted_file_runs_no_code(tmp_path, options):
    target = tmp_path / 'made'
    state = prefixed(small().state_dict(), 'backbone.' if options else '')
    torch.save(dict(state_dict=state, meta=Bomb(target)), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'a\.pth') as info:
        load_checkpoint_file(str(tmp_path / 'a.pth'))
    assert '\n' not in str(info.value)
    with pytest.raises(ValueError, match=r'a\.pth'):
        pretrained(tmp_path / 'a.pth', **options)
    assert not target.exists()
    # The file is a real bomb, so that what was refused above is what it does.
    torch.load(tmp_path / 'a.pth', weights_only=False)
    assert target.exists()


def test_what_mmengine_saves_is_read(tmp_path):
    buffer = HistoryBuffer([1.0, 3.0], [1, 1])
    saved = dict(
        state_dict=small().state_dict(),
        meta=dict(epoch=1, iter=7, cfg='a = 1', seed=0, time='now'),
        message_hub=dict(
            log_scalars=dict(loss=buffer),
            runtime_info=dict(lr=np.float64(0.5), n=np.int64(3)),
            resumed_keys={},
        ),
        optimizer=torch.optim.AdamW(small().parameters()).state_dict(),
    )
    torch.save(saved, tmp_path / 'a.pth')
    read = load_checkpoint_file(str(tmp_path / 'a.pth'))
    assert read['message_hub']['log_scalars']['loss'].mean() == 2.0
    assert read['message_hub']['runtime_info'] == dict(lr=0.5, n=3)
    assert_has(pretrained(tmp_path / 'a.pth'), saved['state_dict'])


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'no checkpoint',
        [torch.zeros(1)],
        torch.zeros(1),
        {'state_dict': [1, 2]},
        {'epoch': 3},
        {'state_dict': {'stem.conv1.weight': 'text'}},
    ],
    ids=['empty', 'text', 'list', 'tensor', 'list of weights', 'no weights', 'no tensor'],
)
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / 'a.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r'a\.pth') as info:
        pretrained(path)
    assert '\n' not in str(info.value)


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / 'a.pth', tmp_path):
        with pytest.raises((ValueError, FileNotFoundError), match=str(path)):
            pretrained(path)


def test_truncated_file(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(small().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r'a\.pth'):
        pretrained(path)


def test_state_dict_of():
    names = ['backbone.a', 'backbone.b.c', 'backbones.a', 'head.a']
    state = {name: torch.full((1,), i) for i, name in enumerate(names)}
    assert state_dict_of(state) == state_dict_of(dict(state_dict=state, meta={})) == state
    assert state_dict_of(prefixed(state, 'module.')) == state
    for prefix in ('backbone', 'backbone.'):
        under = state_dict_of(dict(state_dict=state), prefix)
        assert {k: v.item() for k, v in under.items()} == {'a': 0, 'b.c': 1}
    assert state_dict_of(state, 'neck.') == {}


def test_unfit_keys():
    module = torch.nn.Linear(3, 2)
    assert unfit_keys(module, module.state_dict()) == []
    lines = unfit_keys(module, {'weight': torch.zeros(3, 2), 'scale': torch.zeros(1)})
    assert lines == [
        'missing bias',
        'shape of weight: (3, 2) in the file, (2, 3) in the model',
        'unexpected scale',
    ]


@pytest.mark.parametrize('module', [b'numpy.core.multiarray', b'numpy._core.multiarray'])
def test_arrays_of_both_numpys_are_read(tmp_path, module):
    """numpy 1 and 2 name the functions that rebuild arrays and scalars differently."""
    own = np.empty(0).__reduce__()[0].__module__.encode()
    path, content = tmp_path / 'numpy.pth', dict(array=np.arange(3.0), scalar=np.float64(2))
    torch.save(content, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b'c' + own + b'\n', b'c' + module + b'\n'))
    assert b'c' + module in path.read_bytes()
    loaded = load_checkpoint_file(path)
    assert np.array_equal(loaded['array'], content['array'])
    assert loaded['scalar'] == 2


def test_the_users_own_safe_globals_stay(tmp_path):
    path = tmp_path / 'plain.pth'
    torch.save(dict(a=torch.ones(1)), path)
    with torch.serialization.safe_globals([HistoryBuffer]):
        load_checkpoint_file(path)
        assert HistoryBuffer in torch.serialization.get_safe_globals()


def test_home_is_found_and_other_schemes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save(dict(a=torch.ones(1)), tmp_path / 'w.pth')
    assert load_checkpoint_file('~/w.pth')['a'] == 1
    with pytest.raises(InputError, match=r's3://bucket/w.pth: only files and http'):
        load_checkpoint_file('s3://bucket/w.pth')
