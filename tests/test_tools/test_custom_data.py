"""docs/custom_classification.md and docs/custom_dataset.md: their settings, as a new user would try them."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmvisiongru.checkpoint import load_checkpoint_file
from tests.harness import ROOT
from tests.harness.small_runs import SEGMENTATION, save, write_config
from tools import test as test_tool
from tools import train


def snippets(page):
    return re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / page).read_text(encoding='utf-8'), re.DOTALL)


CONFIG, LOAD, DECAY, FREEZE, CONVNEXT = snippets('custom_classification.md')
QUICK = ['train_cfg.max_epochs=1', 'param_scheduler=[]', 'train_dataloader.batch_size=4',
         'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0']  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a user works, with the configs of the repository and three classes of pictures."""
    shutil.copytree(ROOT / 'configs', tmp_path / 'mein Ordner ä/configs')
    monkeypatch.chdir(tmp_path / 'mein Ordner ä')
    random = np.random.default_rng(0)
    for split in ('train', 'val', 'test'):
        for name in ('ant', 'bee', 'cät'):
            for i in range(2):
                save(f'data/mine/{split}/{name}/{i} ß.png', random.integers(0, 256, (50, 60, 3)))


def fit(text, classes=3):
    """Train as the page says; the checkpoint."""
    config = CONFIG.replace('39', str(classes)) + text
    test = "data_root=data_root, data_prefix='test'))  # with"
    config = config.replace('data_root=data_root))  # with', test)
    Path('mine').mkdir(exist_ok=True)
    Path('mine/visiongru-pico_1xb32_mine.py').write_text(config, encoding='utf-8')
    train.main(['mine/visiongru-pico_1xb32_mine.py', '--work-dir', 'work', '--cfg-options', *QUICK])
    return load_checkpoint_file('work/epoch_1.pth')


def test_own_classes_a_test_split_and_fine_tuning_from_another_number_of_classes(folder, capfd):
    first = fit('')
    assert first['state_dict']['head.fc.weight'].shape == (3, 192)
    assert first['meta']['iter'] == 2
    assert first['meta']['dataset_meta']['classes'] == ('ant', 'bee', 'cät')
    test_tool.main(['mine/visiongru-pico_1xb32_mine.py', 'work/epoch_1.pth', '--show-dir', 'shown'])
    assert len(list(Path('shown').rglob('* ß.png'))) == 6
    assert '6 pictures in shown' in capfd.readouterr().out

    shutil.move('work/epoch_1.pth', 'visiongru-pico.pth')
    for split in ('train', 'val', 'test'):
        shutil.rmtree(f'data/mine/{split}/cät')
    second = fit(LOAD + DECAY + FREEZE.replace('dict(backbone', 'dict(head=dict(num_classes=2), backbone'), 2)
    assert 'not loaded: shape of head.fc.weight' in capfd.readouterr().out
    frozen, trained = (f'backbone.stages.{i}.blocks.0.mlp.fc1.weight' for i in (1, 3))
    assert (first['state_dict'][frozen] == second['state_dict'][frozen]).all()
    assert (first['state_dict'][trained] != second['state_dict'][trained]).any()
    rates = {group['lr'] for group in second['optimizer']['param_groups']}
    # Stages 3 and 4 have three blocks, and the head is a layer.
    assert len(rates) == 4
    assert min(rates) / max(rates) == pytest.approx(0.9**3)


def test_another_backbone(folder):
    checkpoint = fit(CONVNEXT.replace('head=dict(', 'head=dict(num_classes=3, '))
    assert checkpoint['state_dict']['head.fc.weight'].shape == (3, 320)


TWO_CLASSES = [text for text in snippets('custom_dataset.md') if 'num_classes=2' in text]


@pytest.mark.parametrize(('text', 'channels'), [*zip(TWO_CLASSES, (2, 1), strict=True)])
def test_two_classes(workplace, text, channels):
    """Both forms train, on masks of 0 and 1 that are in one folder with the images and listed in a file."""
    pages = snippets('custom_dataset.md')
    layout, lists = (each for each in pages if each.startswith(('data_prefix', 'ann')))
    random = np.random.default_rng(0)
    for i in range(4):
        save(f'data/all/{i}_img.png', random.integers(0, 256, (32, 32, 3)))
        save(f'data/all/{i}_mask.png', random.integers(0, 2, (32, 32)))
    Path('data/splits').mkdir()
    Path('data/splits/train.txt').write_text('0\n1\n2\n')
    own = f"""
names = dict(classes=('background', 'crack'))
{lists.splitlines()[0]}
{layout}
for loader in (train_dataloader, val_dataloader):
    loader['dataset'] = dict(type='BaseSegDataset', data_root='data', pipeline=pipeline, metainfo=names,
        ann_file=ann_file, data_prefix=data_prefix, img_suffix=img_suffix, seg_map_suffix=seg_map_suffix)
head = model['decode_head']
launcher = 'none'
"""
    two = text.replace('model = dict(', 'two = dict(') + "head.update(two['decode_head'])\n"
    write_config(workplace / 'tiny.py', SEGMENTATION, 'data', own + two)
    train.main(['tiny.py', '--work-dir', 'work'])
    weights = load_checkpoint_file('work/iter_2.pth')['state_dict']
    assert weights['decode_head.conv_seg.weight'].shape[0] == channels
    test_tool.main(['tiny.py', 'work/iter_2.pth', '--out', 'maps'])
    assert [np.asarray(Image.open(f'maps/{i}_img.png')).max() < 2 for i in range(3)] == 3 * [True]
