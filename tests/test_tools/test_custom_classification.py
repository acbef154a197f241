"""docs/custom_classification.md: its config and each of its settings, on three folders of pictures."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from mmvisiongru.checkpoint import load_checkpoint_file
from tests.harness import ROOT
from tools import train

SNIPPETS = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/custom_classification.md').read_text(), re.DOTALL)
CONFIG, *SETTINGS = SNIPPETS
NAMES = ('load_coverage', 'layer_decay_rate', 'frozen_stages', 'ConvNeXt')
QUICK = [
    'train_cfg.max_epochs=1',
    'param_scheduler=[]',
    'train_dataloader.num_workers=0',
    'val_dataloader.num_workers=0',
    'train_dataloader.batch_size=4',
    'default_hooks.logger.interval=1',
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the configs of the repository and three classes of pictures; the test works in it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / 'configs', 'configs')
    random = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in ('ant', 'bee', 'cat'):
            (tmp_path / 'data/mine' / split / name).mkdir(parents=True)
            for i in range(2):
                picture = Image.fromarray(random.integers(0, 256, (50, 60, 3), np.uint8))
                picture.save(f'data/mine/{split}/{name}/{i}.png')
    return tmp_path


def run(text, *options):
    """Train as the page says, with three classes; the weights."""
    assert '39' in CONFIG
    config = CONFIG.replace('39', '3') + text
    with open('configs/classification/visiongru-pico_1xb32_mine.py', 'w') as file:
        file.write(config)
    path = 'configs/classification/visiongru-pico_1xb32_mine.py'
    train.main([path, '--work-dir', 'work', '--cfg-options', *QUICK, *options])
    return load_checkpoint_file('work/epoch_1.pth')


def test_the_config_has_at_most_twelve_lines():
    assert len(CONFIG.splitlines()) <= 12
    assert [name in text for name, text in zip(NAMES, SETTINGS, strict=True)] == [True] * 4


def test_the_config_trains(folder):
    checkpoint = run('')
    assert checkpoint['state_dict']['head.fc.weight'].shape == (3, 192)
    assert checkpoint['meta']['iter'] == 2
    cfg = checkpoint['meta']['cfg']
    assert "'scale': 96" in cfg or 'scale=96' in cfg
    assert 'crop_size=96' in cfg


def test_fine_tuning_from_another_number_of_classes(folder, capfd):
    first = run('')
    shutil.move('work/epoch_1.pth', 'visiongru-pico.pth')
    for split in ('train', 'val'):
        shutil.rmtree(f'data/mine/{split}/cat')
    settings = '\n'.join(SETTINGS[:3]).replace('dict(backbone', 'dict(head=dict(num_classes=2), backbone')
    second = run(settings, 'data_preprocessor.num_classes=2')
    assert 'not loaded: shape of head.fc.weight' in capfd.readouterr().out
    frozen = 'backbone.stages.1.blocks.0.mlp.fc1.weight'
    assert (first['state_dict'][frozen] == second['state_dict'][frozen]).all()
    trained = 'backbone.stages.3.blocks.0.mlp.fc1.weight'
    assert (first['state_dict'][trained] != second['state_dict'][trained]).any()
    rates = {group['lr'] for group in second['optimizer']['param_groups']}
    # Stages 3 and 4 have three blocks, and the head is a layer.
    assert len(rates) == 4
    assert min(rates) / max(rates) == pytest.approx(0.9**3)


def test_another_backbone(folder):
    checkpoint = run(SETTINGS[3].replace('head=dict(', 'head=dict(num_classes=3, '))
    assert checkpoint['state_dict']['head.fc.weight'].shape == (3, 320)
