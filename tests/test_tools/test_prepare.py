"""One order of checks for every script, and one line with its place for what cannot be built."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import BaseLoop

from mmvisiongru.launch import prepare
from mmvisiongru.zoo import build_model
from tests.harness.small_runs import CLASSIFICATION, SEGMENTATION, write_config
from tools import test as test_tool
from tools import train
from tools.analysis_tools import analyze_logs, confusion_matrix
from tools.misc import print_config, verify_dataset
from tools.visualization import browse_dataset, image_demo

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
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
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(Config.fromfile(path).model)
    torch.save(dict(state_dict=model.state_dict(), meta={}), 'model.pth')
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
    ('option', 'message'),
    [
        ('default_hooks.logger.intervall=3', "unknown key 'intervall' in default_hooks.logger; did you mean"),
        ('optim_wrapper.optimizer.type=Adamm', "optim_wrapper.optimizer: no optimizer is registered as 'Ada"),
        ('modle.type=X', "unknown key 'modle' in --cfg-options modle.type; did you mean 'model'?"),
    ],
)
def test_every_script_makes_the_same_checks(scenes, capsys, script, option, message):
    code, err = run(script, capsys, '--cfg-options', option)
    assert (code, len(err)) == (2, 1)
    assert err[0].startswith('error: ' + message)


@pytest.mark.parametrize(
    ('script', 'message'),
    [
        (confusion_matrix, "model in tiny.py: no model is registered as 'EncoderDecoder'; set default_scope"),
        (image_demo, 'config file tiny.py has no default_scope; '),
        (browse_dataset, 'config file tiny.py has no default_scope; '),
    ],
)
def test_config_without_a_scope(scenes, capsys, script, message):
    code, err = run(script, capsys, '--cfg-options', 'default_scope=None', 'visualizer=None')
    assert (code, len(err)) == (2, 1)
    assert err[0].startswith('error: ' + message)


def test_print_config_refuses_what_training_refuses(scenes, capsys):
    with pytest.raises(SystemExit, match='2'):
        print_config.main(['tiny.py', '--cfg-options', 'train_dataloader.dataset.data_root=away'])
    captured = capsys.readouterr()
    code, err = run(train, capsys, '--cfg-options', 'train_dataloader.dataset.data_root=away')
    assert (code, captured.err.splitlines()) == (2, err)
    # It still shows the config, of which the data may be on another machine.
    assert "data_root='away'" in captured.out
    assert '(train_dataloader.dataset.data_root) does not exist' in err[0]


@pytest.mark.parametrize(
    ('option', 'line'),
    [
        (
            'model.backbone.archh=tiny',
            "model.backbone in tiny.py: VisionGRU takes no argument 'archh'; did you mean 'arch'?",
        ),
        (
            'model.backbone.type=mmvisiongru.VisonGRU',
            "model.backbone in tiny.py: no model is registered as 'mmvisiongru.VisonGRU'; did you mean "
            "'mmvisiongru.VisionGRU'?",
        ),
        (
            'model.backbone.type=nowhere.VisionGRU',
            "model.backbone in tiny.py: no model is registered as 'nowhere.VisionGRU'; is nowhere installed?",
        ),
        (
            'model.backbone.out_indices=7',
            'model.backbone in tiny.py: out_indices must be stages in [-4, 4), got 7',
        ),
        ('model.decode_head.norm_cfg.type=XX', 'model.decode_head.norm_cfg in tiny.py: no model is '),
        ('visualizer.type=A', "visualizer in tiny.py: no visualizer is registered as 'A'"),
        ('default_hooks.guard.patience=0', 'default_hooks.guard in tiny.py: patience must be at least 1, '),
        (
            'train_dataloader.num_worker=1',
            "train_dataloader in tiny.py: DataLoader takes no argument 'num_worker'; did you mean "
            "'num_workers'?",
        ),
        (
            'train_dataloader.sampler.type=Infinite',
            "train_dataloader.sampler in tiny.py: no data sampler is registered as 'Infinite'; did you mean "
            "'InfiniteSampler'?",
        ),
        (
            'train_dataloader.dataset.img_sufix=.png',
            "train_dataloader.dataset in tiny.py: ADE20KDataset takes no argument 'img_sufix'; did you mean "
            "'img_suffix'?",
        ),
        (
            'train_dataloader.dataset.pipeline.1.reduce_zero_labels=True',
            'train_dataloader.dataset.pipeline.1 in tiny.py: LoadAnnotations takes no argument '
            "'reduce_zero_labels'; did you mean 'reduce_zero_label'?",
        ),
        (
            'optim_wrapper.optimizer.weight_deca=0',
            "optim_wrapper.optimizer in tiny.py: AdamW takes no argument 'weight_deca'; did you mean "
            "'weight_decay'?",
        ),
        (
            'param_scheduler=[{"type":"PolyLR","by_epoch":False,"powr":2}]',
            "param_scheduler.0 in tiny.py: PolyLR takes no argument 'powr'; did you mean 'power'?",
        ),
        ('val_evaluator.type=IoU', "val_evaluator in tiny.py: no metric is registered as 'IoU'"),
        # The same settings stand in test_dataloader, which is not built.
        ('val_dataloader.dataset.typo=1', 'val_dataloader.dataset in tiny.py: ADE20KDataset takes no argum'),
    ],
)
def test_what_cannot_be_built_names_its_place(scenes, capsys, option, line):
    key, value = option.split('=', 1)
    if value.startswith('['):
        Path('leaf.py').write_text(f"_base_ = 'tiny.py'\n{key} = {value}\n")
        code, err = run(train, capsys, config='leaf.py')
        line = line.replace('tiny.py', 'leaf.py')
    else:
        code, err = run(train, capsys, '--cfg-options', option)
    assert (code, len(err)) == (2, 1)
    assert err[0].startswith('error: ' + line)
    assert not list(scenes.rglob('iter_*.pth'))


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


def test_training_finds_everything_built(scenes):
    args = train.parse_args(['tiny.py', '--cfg-options', 'auto_scale_lr.base_batch_size=1'])
    args.auto_scale_lr = True
    runner = prepare.prepare_training(args, train.merge_args)
    assert isinstance(runner._train_loop, BaseLoop)
    assert isinstance(runner._val_loop, BaseLoop)
    assert isinstance(runner.optim_wrapper, OptimWrapper)
    loop, optimizer = runner._train_loop, runner.optim_wrapper.optimizer
    runner.train()
    assert runner._train_loop is loop
    assert runner.optim_wrapper.optimizer is optimizer
    # 1e-3 by a batch of 2 over one of 1, scaled once.
    assert optimizer.param_groups[0]['lr'] == pytest.approx(2e-3)


def test_confusion_matrix_of_a_segmentor_needs_no_mmpretrain(scenes, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition('.')[0] == 'mmpretrain']:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, 'mmpretrain', None)
    script = importlib.reload(confusion_matrix)
    script.main(['tiny.py', 'model.pth', '--out', 'm'])
    assert 'on the diagonal' in capsys.readouterr().out


def test_logs_are_read_once(tmp_path, monkeypatch):
    path = tmp_path / 'scalars.json'
    path.write_text('{"iter": 1, "loss": 1.0}\n' * 50)
    reads = []
    read_text = Path.read_text
    monkeypatch.setattr(Path, 'read_text', lambda self: (reads.append(self), read_text(self))[1])
    analyze_logs.read_run(str(path))
    assert reads == [path]


def test_launchers_differ_in_their_name_alone():
    names = ('none', 'pytorch', 'slurm')
    none, *others = (Config.fromfile(CONFIGS / f'_base_/launchers/{name}.py') for name in names)
    for cfg in others:
        assert cfg.env_cfg == none.env_cfg
        assert dict(cfg, launcher='none') == dict(none)


@pytest.mark.parametrize('norm', ['SyncBN', 'MMSyncBN'])
def test_models_to_measure_have_no_norm_across_processes(tmp_path, norm):
    base = CONFIGS / 'segmentation/visiongru-pico_upernet_1xb12-1k_digits-64x64.py'
    path = tmp_path / 'a.py'
    path.write_text(f"_base_ = '{base}'\nmodel = dict(decode_head=dict(norm_cfg=dict(type='{norm}')))\n")
    norms = [m for m in build_model(str(path)).modules() if 'BatchNorm' in type(m).__name__]
    assert norms
    assert {type(m) for m in norms} == {torch.nn.BatchNorm2d}


def test_classification_is_prepared_the_same_way(workplace, capsys):
    write_config(workplace / 'tiny.py', CLASSIFICATION, 'inet', "launcher = 'none'\n")
    code, err = run(train, capsys, '--cfg-options', 'model.head.topkk=(1,)')
    assert (code, len(err)) == (2, 1)
    assert err[0] == (
        "error: model.head in tiny.py: LinearClsHead takes no argument 'topkk'; did you mean 'topk'?"
    )
