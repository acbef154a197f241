"""Checkpoints: those of a training run are read, none runs code, and a misfit is named."""

import io
import os
import pickle
import zipfile

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_checkpoint
from torch import nn

from mmvisiongru.checkpoint import check_weights, read_weights, refuse_pickled_code
from mmvisiongru.errors import InputError
from mmvisiongru.models import VisionGRU


@pytest.fixture(autouse=True)
def _refuse():
    """refuse_pickled_code() for the time of a test."""
    refuse_pickled_code()


class Call:
    """Pickles as the result of a call."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


def plain_attack(path, target):
    """A file that makes a folder when it is unpickled."""
    torch.save({'state_dict': {'weight': torch.zeros(1)}, 'x': Call(os.mkdir, str(target))}, path)


def getattr_attack(path, target):
    """The same with nothing but HistoryBuffer and getattr, which mmengine's list allows.

    ``HistoryBuffer.__setstate__`` calls ``self._statistics_methods.update(argument)``, and takes all of
    these from the file.
    """
    builtins = Call(getattr, Call(getattr, HistoryBuffer, '__init__'), '__builtins__')
    names = Call(HistoryBuffer, state=builtins)
    runner = Call(HistoryBuffer, state={'update': Call(getattr, names, 'exec')})
    victim = Call(
        HistoryBuffer,
        state={'_statistics_methods': runner, '_set_default_statistics': Call(getattr, names, 'dict')},
    )

    class Pickler(pickle._Pickler):
        def save(self, obj, save_persistent_id=True):
            super().save(obj, save_persistent_id)
            if obj is victim:
                super().save({'statistics_methods': f'import os; os.mkdir({str(target)!r})'})
                self.write(pickle.BUILD)

    data = io.BytesIO()
    Pickler(data, 2).dump({'state_dict': {}, 'x': victim})
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', data.getvalue())
        archive.writestr('archive/version', '3\n')
        archive.writestr('archive/byteorder', 'little')


@pytest.mark.parametrize('attack', [plain_attack, getattr_attack])
def test_no_checkpoint_runs_code(tmp_path, monkeypatch, attack):
    path, target = str(tmp_path / 'a.pth'), tmp_path / 'made'
    attack(path, target)
    for load in (read_weights, lambda path: load_checkpoint(nn.Linear(1, 1), path)):
        with pytest.raises(InputError, match=r'a\.pth asks for .* could run code; .*add_safe_globals'):
            load(path)
    assert not target.exists()
    # The attack is a real one.
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    torch.load(path, weights_only=False)
    assert target.exists()


class Recipe:
    """What someone may keep beside the weights."""


def test_class_that_the_user_trusts_is_read(tmp_path):
    path = str(tmp_path / 'a.pth')
    torch.save({'state_dict': {'w': torch.zeros(1)}, 'recipe': Recipe()}, path)
    with pytest.raises(InputError, match=r'asks for .*Recipe, .* torch\.serialization\.add_safe_globals'):
        read_weights(path)
    with torch.serialization.safe_globals([Recipe]):
        assert list(read_weights(path)) == ['w']


def test_files_by_other_addresses_are_weights_only(tmp_path, monkeypatch):
    plain_attack(tmp_path / 'a.pth', tmp_path / 'made')
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'a.pth', weights_only=False)
    assert not (tmp_path / 'made').exists()


def test_training_checkpoint_is_read(tmp_path):
    loss = HistoryBuffer()
    for value in (4.0, 2.0):
        loss.update(value)
    weights = {'module.weight': torch.zeros(2, 3), 'module.bias': torch.zeros(2)}
    saved = dict(
        state_dict=weights, meta=dict(iter=2, epoch=0), message_hub=dict(log_scalars=dict(loss=loss))
    )
    path = str(tmp_path / 'a.pth')
    torch.save(saved, path)
    assert {k: tuple(v.shape) for k, v in read_weights(path, resume=True).items()} == {
        'weight': (2, 3),
        'bias': (2,),
    }
    read = CheckpointLoader.load_checkpoint(path)['message_hub']['log_scalars']['loss']
    assert (read.mean(), read.current(), read.statistics('max')) == (3.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'is not a readable checkpoint'),
        (b'not a checkpoint', 'is not a readable checkpoint'),
        (None, 'does not exist'),
        ([torch.zeros(1)], 'holds no weights'),
        ({'state_dict': {}}, 'holds no weights'),
        ({'weight': torch.zeros(1)}, 'holds weights but no training state to resume'),
    ],
)
def test_checkpoint_that_cannot_be_resumed(tmp_path, content, message):
    path = tmp_path / 'a.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=message):
        read_weights(str(path), resume=True)


@pytest.mark.parametrize('share', [0.3, 0.7, 0.999])
def test_truncated_checkpoint(tmp_path, share):
    path = tmp_path / 'a.pth'
    torch.save({'state_dict': {'weight': torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match='is not a readable checkpoint'):
        read_weights(str(path))


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.norm(self.fc(inputs))


def test_weights_that_fit():
    weights = Model().state_dict()
    del weights['norm.num_batches_tracked']
    check_weights(Model(), weights, 'a.pth')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda w: {k: v for k, v in w.items() if k != 'fc.bias'}, 'missing fc.bias'),
        (lambda w: {**w, 'fc.more': w['fc.bias']}, 'unexpected fc.more'),
        (
            lambda w: {**w, 'fc.bias': torch.zeros(5)},
            r'shape of fc.bias: \(5,\) in the file, \(2,\) in the model',
        ),
    ],
)
def test_weights_that_fit_in_part(change, message):
    weights = change(Model().state_dict())
    with pytest.raises(InputError, match=rf'a\.pth does not fit the model: {message}$'):
        check_weights(Model(), weights, 'a.pth')


@pytest.mark.parametrize('coverage', [None, 0.0])
def test_weights_of_which_none_fits(coverage):
    with pytest.raises(
        InputError, match=r'matches no key of the model: it holds vig\.fc, the model wants fc\.weight'
    ):
        check_weights(Model(), {'vig.fc': torch.zeros(1)}, 'a.pth', coverage)


def test_stated_coverage():
    """Five of the six keys that count; one more than the model has does no harm."""
    weights = {**Model().state_dict(), 'fc.bias': torch.zeros(5), 'more': torch.zeros(1)}
    lines = ['shape of fc.bias: (5,) in the file, (2,) in the model', 'unexpected more']
    assert check_weights(Model(), weights, 'a.pth', coverage=0.8) == lines
    message = r'a\.pth has 5 of the 6 keys of the model, load_coverage=0\.9 demands more: shape of fc\.bias'
    with pytest.raises(InputError, match=message):
        check_weights(Model(), weights, 'a.pth', coverage=0.9)
    del weights['fc.bias']
    with pytest.raises(InputError, match=r'has 5 of the 6 keys .* missing fc\.bias'):
        check_weights(Model(), weights, 'a.pth', coverage=1.0)
    assert check_weights(Model(), {**Model().state_dict(), 'more': torch.zeros(1)}, 'a.pth', 1.0) == lines[1:]


@pytest.mark.parametrize('share', [0.5, 0.99])
def test_share_of_a_backbone(share):
    """A file with some of the keys: no test runs with it, and training only if that share is stated."""
    with torch.device('meta'):
        model = VisionGRU('pico')
    whole = model.state_dict()
    weights = dict(list(whole.items())[: int(share * len(whole))])
    lost = len(whole) - len(weights)
    with pytest.raises(InputError, match=r'does not fit the model: missing stages\.'):
        check_weights(model, weights, 'a.pth')
    with pytest.raises(InputError, match=rf'has {len(weights)} of the {len(whole)} keys .* demands more'):
        check_weights(model, weights, 'a.pth', coverage=share + 0.005)
    lines = check_weights(model, weights, 'a.pth', coverage=share - 0.02)
    assert lines == [f'missing {key}' for key in list(whole)[-lost:]]
