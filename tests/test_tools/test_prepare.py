"""Every script and the public functions make the same checks of a config, in the same order."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmvisiongru.apis import get_model
from mmvisiongru.errors import InputError
from mmvisiongru.zoo import build_model
from tests.harness import ROOT
from tests.harness.children import environment
from tests.harness.small_runs import SEGMENTATION, TOOLS, write_config
from tools import test as test_tool
from tools import train
from tools.analysis_tools import confusion_matrix
from tools.misc import print_config, verify_dataset
from tools.visualization import browse_dataset, image_demo

# What each script is called with besides the config.
SCRIPTS = {
    train: [],
    test_tool: ['model.pth'],
    confusion_matrix: ['model.pth'],
    image_demo: ['model.pth'],
    print_config: [],
    verify_dataset: [],
    browse_dataset: [],
}


@pytest.fixture
def scenes(workplace):
    """A folder with a segmentation config, its data and a checkpoint that fits."""
    path = write_config(workplace / 'tiny.py', SEGMENTATION, 'ade')
    torch.save(dict(state_dict=get_model(str(path)).state_dict(), meta={}), 'model.pth')
    return workplace


def run(script, capsys, *args, config='tiny.py') -> tuple[int, list[str]]:
    """Exit code and lines on stderr of a script."""
    image = ['ade/images/validation'] if script is image_demo else []
    code = 0
    try:
        script.main([*image, config, *SCRIPTS[script], *args])
    except SystemExit as exit_:
        code = exit_.code
    return code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda script: script.__name__)
@pytest.mark.parametrize(
    ('option', 'named'),
    [
        ('default_hooks.logger.intervall=3', ['default_hooks.logger', "'interval'"]),
        ('model.backbone.type=VisionGRU', ['model.backbone.type', "'mmvisiongru.VisionGRU'"]),
        ('modle.type=X', ["'modle'", "'model'"]),
    ],
)
def test_every_script_makes_the_same_checks(scenes, capsys, script, option, named):
    code, err = run(script, capsys, '--cfg-options', option)
    assert (code, len(err)) == (2, 1)
    assert [part for part in named if part not in err[0]] == []


@pytest.mark.parametrize('script', [confusion_matrix, image_demo, browse_dataset])
def test_config_without_a_scope(scenes, capsys, script):
    code, err = run(script, capsys, '--cfg-options', 'default_scope=None', 'visualizer=None')
    assert (code, len(err)) == (2, 1)
    assert 'default_scope' in err[0]


@pytest.mark.parametrize(
    ('option', 'named'),
    [
        ('train_dataloader.dataset.data_root=away', 'train_dataloader.dataset.data_root'),
        ('model.decode_head.in_channels=9', 'set model.decode_head.in_channels=64'),
        ('model.decode_head.num_classes=9', 'set model.decode_head.num_classes=3'),
        ('model.decode_head.ignore_index=0', 'train_dataloader.dataset.ignore_index=255'),
        ('train_cfg=None', 'train_cfg'),
    ],
)
def test_print_config_refuses_what_training_refuses(scenes, capsys, option, named):
    with pytest.raises(SystemExit, match='2'):
        print_config.main(['tiny.py', '--cfg-options', option])
    captured = capsys.readouterr()
    code, err = run(train, capsys, '--cfg-options', option)
    assert code == 2
    assert named in err[0]
    assert named in captured.err
    # It still shows the config, of which the data may be on another machine.
    assert 'IoUMetric' in captured.out


def test_scripts_take_the_name_of_a_config(workplace, capsys):
    with pytest.raises(SystemExit, match='2'):
        print_config.main(['visiongru-pico_1xb64_digits'])
    captured = capsys.readouterr()
    assert 'mmvisiongru.VisionGRU' in captured.out
    assert 'train_dataloader.dataset.data_root' in captured.err


def test_print_config_in_an_8_bit_locale(tmp_path):
    (tmp_path / 'a.py').write_text("note = 'Größe'\n", encoding='utf-8')
    env = environment() | dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0')
    command = [sys.executable, str(TOOLS / 'misc/print_config.py'), 'a.py']
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, '')
    assert 'Gr\\xf6\\xdfe' in done.stdout


def test_traceback_is_in_the_log_file_and_shown_on_demand(scenes, capsys):
    option = ('--cfg-options', 'model.backbone.candidate=tanh')
    code, err = run(train, capsys, *option)
    assert (code, len(err)) == (2, 1)
    (log,) = scenes.glob('work_dirs/tiny/*/*.log')
    assert 'in _check_options' in log.read_text()
    code, debug = run(train, capsys, '--debug', *option)
    assert code == 2
    assert debug[-1] == err[0]
    assert any('in _check_options' in line for line in debug)


def test_confusion_matrix_of_a_segmentor_needs_no_mmpretrain(scenes, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition('.')[0] == 'mmpretrain']:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, 'mmpretrain', None)
    script = importlib.reload(confusion_matrix)
    script.main(['tiny.py', 'model.pth', '--out', 'm'])
    assert 'on the diagonal' in capsys.readouterr().out


@pytest.mark.parametrize('norm', ['SyncBN', 'MMSyncBN'])
def test_models_to_measure_have_no_norm_across_processes(tmp_path, norm):
    base = ROOT / 'configs/segmentation/visiongru-pico_upernet_1xb12-1k_digits-64x64.py'
    path = tmp_path / 'a.py'
    path.write_text(f"_base_ = '{base}'\nmodel = dict(decode_head=dict(norm_cfg=dict(type='{norm}')))\n")
    norms = [m for m in build_model(str(path)).modules() if 'BatchNorm' in type(m).__name__]
    assert norms
    assert {type(m) for m in norms} == {torch.nn.BatchNorm2d}


@pytest.mark.parametrize(
    ('name', 'named'),
    [
        ('leaf.py', ['model.backbone', "'arch'"]),
        ('mmvisiongru.VisonGRU:tiny', ["'mmvisiongru.VisionGRU'"]),
        ('mmvisiongru.VisionGRU:tinny', ['arch', 'tinny']),
        ('visiongru-tiny_8xb128_in1', ["'visiongru-tiny_8xb128_in1k'"]),
    ],
)
def test_models_by_name_end_in_the_same_lines(scenes, name, named):
    Path('leaf.py').write_text("_base_ = 'tiny.py'\nmodel = dict(backbone=dict(archh='tiny'))\n")
    with pytest.raises(InputError) as error:
        get_model(name)
    assert [part for part in named if part not in str(error.value)] == []
