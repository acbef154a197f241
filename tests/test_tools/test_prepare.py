"""Every script and the public functions make the same checks of a config, in the same order."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmvisiongru.zoo import build_model
from tests.harness.children import environment
from tests.harness.small_runs import SEGMENTATION, TOOLS, write_config
from tools import test as test_tool
from tools import train
from tools.analysis_tools import confusion_matrix
from tools.misc import print_config, verify_dataset
from tools.visualization import browse_dataset, image_demo

SCRIPTS = (train, test_tool, confusion_matrix, image_demo, print_config, verify_dataset, browse_dataset)


def needed(script) -> list[str]:
    """The arguments of a script that are no options."""
    image = ['ade/images/validation'] if script is image_demo else []
    return [*image, 'tiny.py', *(['fits.pth'] if script in (test_tool, confusion_matrix, image_demo) else [])]


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda script: script.__name__)
def test_every_script_makes_the_same_checks(segmentor, refused, script):
    for option, named in (
        ('default_hooks.logger.intervall=3', ['default_hooks.logger', "'interval'"]),
        ('model.backbone.type=VisionGRU', ['model.backbone.type', "'mmvisiongru.VisionGRU'"]),
        ('modle.type=X', ["'modle'", "'model'"]),
    ):
        line = refused(script, *needed(script), '--cfg-options', option)
        assert [part for part in named if part not in line] == []


@pytest.mark.parametrize(
    ('option', 'named'),
    [
        ('train_dataloader.dataset.data_root=away', 'train_dataloader.dataset.data_root'),
        ('model.decode_head.num_classes=9', 'set model.decode_head.num_classes=3'),
        ('train_cfg=None', 'train_cfg'),
    ],
)
def test_print_config_refuses_what_training_refuses(segmentor, capsys, refused, option, named):
    assert named in refused(train, 'tiny.py', '--cfg-options', option)
    with pytest.raises(SystemExit, match='2'):
        print_config.main(['tiny.py', '--cfg-options', option])
    captured = capsys.readouterr()
    assert named in captured.err
    # It still shows the config, of which the data may be on another machine, with what it inherits.
    printed = {}
    exec(captured.out, printed)
    assert printed['val_evaluator'] == dict(type='IoUMetric')
    assert printed['log_processor'] == dict(by_epoch=False)


def test_print_config_in_an_8_bit_locale(tmp_path):
    (tmp_path / 'a.py').write_text("note = 'Größe'\n", encoding='utf-8')
    env = environment() | dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0')
    command = [sys.executable, str(TOOLS / 'misc/print_config.py'), 'a.py']
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, '')
    assert 'Gr\\xf6\\xdfe' in done.stdout


def test_traceback_is_in_the_log_file_and_shown_on_demand(segmentor, capsys, refused):
    option = ('--cfg-options', 'model.backbone.candidate=tanh')
    line = refused(train, 'tiny.py', *option)
    (log,) = Path('work_dirs/tiny').glob('*/*.log')
    with pytest.raises(SystemExit, match='2'):
        train.main(['tiny.py', '--debug', *option])
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == line
    for text in (log.read_text(), err):
        assert 'Traceback' in text
        assert 'visiongru.py' in text


@pytest.mark.parametrize('norm', ['SyncBN', 'MMSyncBN'])
def test_models_to_measure_have_no_norm_across_processes(tmp_path, norm):
    path = write_config(tmp_path / 'a.py', SEGMENTATION.replace('SyncBN', norm), 'ade')
    norms = {type(m) for m in build_model(str(path)).modules() if 'BatchNorm' in type(m).__name__}
    assert norms == {torch.nn.BatchNorm2d}
