"""What a run says on the terminal."""

from subprocess import STDOUT

from tests.harness.children import environment
from tests.harness.small_runs import SEGMENTATION, TOOLS, make_scenes, write_config
from tests.harness.toy import finish, python

# With a table of groups, a warm-up and pinned memory, as the recipes have it.
RECIPE = """
train_dataloader.update(pin_memory=True)
optim_wrapper = dict(
    constructor='mmvisiongru.GroupedOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.1),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=2),
                   dict(type='PolyLR', by_epoch=False, begin=2)]
"""


def test_a_run_starts_with_a_summary_of_at_most_20_lines(tmp_path):
    make_scenes(tmp_path / 'data')
    broken = tmp_path / 'data/images/training/3.jpg'
    broken.write_bytes(b'no picture')
    extra = RECIPE + 'train_cfg.update(max_iters=4)\n'
    write_config(tmp_path / 'tiny.py', SEGMENTATION, tmp_path / 'data', extra)
    environ = environment(CUDA_VISIBLE_DEVICES='')
    code, out = finish(python(TOOLS / 'train.py', 'tiny.py', cwd=tmp_path, env=environ, stderr=STDOUT))
    assert code == 0, out
    lines = out.splitlines()
    first = next(i for i, line in enumerate(lines) if '(train)' in line)
    start = [line for line in lines[:first] if 'bad sample' not in line]
    assert len(start) <= 20
    for what in ('model: ', 'parameters', 'train data: ', 'schedule: ', 'device: ', 'backend ', 'work dir: '):
        assert any(what in line for line in start), what
    (log,) = tmp_path.glob('work_dirs/tiny/*/*.log')
    text = log.read_text()
    (bad,) = (line for line in lines if 'bad sample skipped' in line)
    assert str(broken) in bad
    assert 'logger.py' not in out + text
