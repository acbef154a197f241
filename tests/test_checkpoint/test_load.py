"""Reading checkpoints: completely, as data only, and once."""

import io
import os
import pickle
import runpy
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_checkpoint
from torch import nn

from mmvisiongru.checkpoint import load_checkpoint_file, read_checkpoint, refuse_pickled_code
from mmvisiongru.errors import InputError
from tests.harness.small_runs import SEGMENTATION, TOOLS, Call, write_config
from tests.harness.toy import toy_runner


def plain_attack(path, target):
    """A file that makes a folder when it is unpickled."""
    torch.save({'state_dict': {'weight': torch.zeros(1)}, 'x': Call(os.mkdir, str(target))}, path)


def getattr_attack(path, target):
    """The same with nothing but HistoryBuffer and getattr, which mmengine's list allows.

    ``HistoryBuffer.__setstate__`` calls ``self._statistics_methods.update(argument)``, and takes all of
    these from the file.
    """
    names = Call(HistoryBuffer, state=Call(getattr, Call(getattr, HistoryBuffer, '__init__'), '__builtins__'))
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
    with pytest.raises(InputError, match=r'a\.pth asks for .*add_safe_globals'):
        read_checkpoint(path)
    refuse_pickled_code()
    with pytest.raises(InputError, match=r'a\.pth asks for .*add_safe_globals'):
        load_checkpoint(nn.Linear(1, 1), path)
    # Nor without mmengine.
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=False)
    assert not target.exists()
    # The attack is a real one.
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    torch.load(path, weights_only=False)
    assert target.exists()


def test_what_the_user_registered_is_kept(tmp_path):
    path = str(tmp_path / 'a.pth')
    torch.save({'w': torch.ones(1), 'recipe': PurePosixPath('a')}, path)
    with torch.serialization.safe_globals([PurePosixPath, HistoryBuffer]):
        assert list(read_checkpoint(path).state_dict) == ['w']
        assert HistoryBuffer in torch.serialization.get_safe_globals()
    loaders = dict(CheckpointLoader._schemes)
    with pytest.raises(InputError, match=r'asks for .*PurePosixPath'):
        read_checkpoint(path)
    assert CheckpointLoader._schemes == loaders


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (None, 'does not exist'),
        (b'no checkpoint', 'readable'),
        (torch.zeros(1), 'no weights'),
        ({'state_dict': [1, 2]}, 'no weights'),
        ({'state_dict': {'a': 'text'}}, 'no weights'),
        ({'state_dict': {'a': torch.zeros(1), 0: torch.zeros(1)}}, 'named 0'),
        ({0: torch.zeros(1)}, 'no weights'),
        ({'a': torch.zeros(1)}, 'no training state'),
        # As the best checkpoint of a run.
        (dict(state_dict={'a': torch.zeros(1)}, meta={}, message_hub={}), 'no training state'),
    ],
    ids=str,
)
def test_content_that_cannot_be_resumed(tmp_path, content, reason):
    path = tmp_path / 'a.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=reason) as info:
        read_checkpoint(str(path), resume=True)
    assert 'a.pth' in str(info.value)
    assert '\n' not in str(info.value)
    with pytest.raises(InputError, match='is a folder'):
        read_checkpoint(str(tmp_path))


def test_every_damage_is_found_or_harmless(tmp_path):
    path, weight = tmp_path / 'a.pth', torch.linspace(0, 1, 300)
    torch.save({'state_dict': {'w': weight}, 'meta': dict(iter=5)}, path)
    good = path.read_bytes()
    found = 0
    for at in range(0, len(good), 7):
        flipped = good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :]
        for damaged in (flipped, good[:at], good[:at] + b'x' + good[at:]):
            path.write_bytes(damaged)
            try:
                content = load_checkpoint_file(str(path))
            except InputError:
                found += 1
            else:
                assert torch.equal(content['state_dict']['w'], weight)
                assert content['meta'] == dict(iter=5)
    assert found > 2 * len(good) // 7


@pytest.mark.parametrize('module', [b'numpy.core.multiarray', b'numpy._core.multiarray'])
def test_arrays_of_both_numpys_are_read(tmp_path, module):
    """numpy 1 and 2 name the functions that rebuild arrays and scalars differently."""
    own = np.empty(0).__reduce__()[0].__module__.encode()
    path, content = tmp_path / 'numpy.pth', dict(array=np.arange(3.0), scalar=np.float64(2))
    torch.save(content, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b'c' + own + b'\n', b'c' + module + b'\n'))
    assert b'c' + module in path.read_bytes()
    loaded = load_checkpoint_file(str(path))
    assert np.array_equal(loaded['array'], content['array'])
    assert loaded['scalar'] == 2


def test_checkpoints_of_a_run_are_read_by_plain_torch_and_resumed_by_plain_mmengine(tmp_path):
    toy_runner(tmp_path / 'a', iters=9, experiment_name='a').train()
    path = tmp_path / 'a/iter_9.pth'
    assert torch.load(path, weights_only=True)['message_hub']['runtime_info']['best_score'] >= 0
    resumed = dict(load_from=str(path), resume=True, runner_type='Runner')
    plain = toy_runner(
        tmp_path / 'b', iters=12, **resumed, **{'default_hooks.checkpoint.type': 'CheckpointHook'}
    )
    plain.train()
    assert plain.iter == 12
    # Those of mmengine's hook, which torch refuses, are read too.
    path = tmp_path / 'b/iter_12.pth'
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    loss = read_checkpoint(str(path)).content['message_hub']['log_scalars']['train/loss']
    assert loss.statistics('mean', 3) == pytest.approx(loss.data[0].mean())


@pytest.fixture
def loads(monkeypatch):
    """The options of each call of torch.load."""
    calls, load = [], torch.load

    def count(*args, **kwargs):
        calls.append(kwargs)
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, 'load', count)
    return calls


def test_each_tool_loads_once(workplace, loads):
    def tool(name: str, *args: str) -> int:
        """Run it; the number of loads."""
        del loads[:]
        runpy.run_path(str(TOOLS / f'{name}.py'))['main']([*args])
        return len(loads)

    config = write_config(workplace / 'tiny.py', SEGMENTATION, workplace / 'ade').name
    path = 'work_dirs/tiny/iter_2.pth'
    assert tool('train', config) == 0
    assert tool('test', config, path) == 1
    assert tool('train', config, '--resume', '--cfg-options', 'train_cfg.max_iters=4') == 1
    assert tool('train', config, '--work-dir', 'b', '--cfg-options', f'load_from={path}') == 1
    init = ('type=Pretrained', f'checkpoint={path}', 'prefix=backbone.')
    init = [f'model.backbone.init_cfg.{setting}' for setting in init]
    assert tool('train', config, '--work-dir', 'c', '--cfg-options', *init) == 1
    assert tool('deployment/export', config, path, 'model.onnx', '--eval') == 1

    # Without the retry of mmengine that lets a file run code.
    from mmseg.apis import init_model

    del loads[:]
    model = init_model(config, path, device='cpu')
    assert [call['weights_only'] for call in loads] == [True]
    assert model.dataset_meta['classes'] == ('wall', 'building', 'sky')


def test_no_checkpoint_of_an_address_runs_code(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    plain_attack(tmp_path / 'a.pth', tmp_path / 'made')
    torch.save({'w': torch.ones(2)}, tmp_path / 'b.pth')
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        address = f'http://127.0.0.1:{server.server_port}'
        try:
            with pytest.raises(InputError, match=r'a\.pth asks for'):
                read_checkpoint(f'{address}/a.pth')
            assert read_checkpoint(f'{address}/b.pth').state_dict['w'].tolist() == [1, 1]
        finally:
            server.shutdown()
    assert not (tmp_path / 'made').exists()
