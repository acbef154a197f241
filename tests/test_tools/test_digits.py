"""The digits sets: real digits, no digit in two splits, labels on strokes, the same bytes on every run."""

import sys
from functools import partial

import numpy as np
import pytest
from mmengine.config import Config
from mmseg.datasets import BaseSegDataset, LoadAnnotations
from PIL import Image
from sklearn.datasets import load_digits

from tests.harness import ROOT
from tools.dataset_converters import digits

FEW = dict(training=12, validation=6)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp('digits') / 'segmentation'
    digits.write_segmentation(root, FEW, progress=False)
    return root


@pytest.fixture(scope='module')
def tiles(tmp_path_factory):
    root = tmp_path_factory.mktemp('digits') / 'classification'
    digits.write_classification(root, progress=False)
    return root


def read(path):
    return np.asarray(Image.open(path))


def test_splits_share_no_digit_and_together_are_all():
    splits = digits.split_digits()
    images = {split: [image.tobytes() for _, image, _ in samples] for split, samples in splits.items()}
    assert not set(images['training']) & set(images['validation'])
    assert [index for samples in splits.values() for index, *_ in samples] == list(range(1797))
    assert [digit for samples in splits.values() for *_, digit in samples] == load_digits().target.tolist()


def test_validation_starts_with_a_new_sheet():
    """Every sheet starts with 0 to 9, three times, and goes on with the same digits."""
    text = ''.join(map(str, load_digits().target))
    start = digits.FIRST_VALIDATION_DIGIT
    assert text[start : start + 30] == '0123456789' * 3
    # The third time ends a sheet's beginning: 14 sheets, 11 of them in training.
    assert [text[:start].count('955650989841773512'), text.count('9556509898417735')] == [1, 14]
    assert text[:start].count('9556509898417735') == 11


def test_tiles_are_the_digits_of_scikit_learn(tiles):
    data = load_digits()
    assert {p.name for p in tiles.iterdir()} == {'train', 'val'}
    for split, indices in (('train', range(1415)), ('val', range(1415, 1797))):
        paths = {int(p.stem): p for p in (tiles / split).glob('*/*.png')}
        assert sorted(paths) == list(indices)
        for index in list(indices)[::50]:
            assert paths[index].parent.name == str(data.target[index])
            # Means of 4 x 4 pixels are the 8 x 8 digit again, but for some smoothing.
            shrunk = read(paths[index]).reshape(8, 4, 8, 4).mean((1, 3))
            assert np.corrcoef(shrunk.ravel(), data.images[index].ravel())[0, 1] > 0.97


def test_label_is_one_plus_the_digit_of_its_stroke():
    samples = digits.split_digits()['training']
    for digit in range(10):
        image, label = digits.make_scene(np.random.RandomState(digit), [s for s in samples if s[2] == digit])
        image, label = np.asarray(image).mean(2), np.asarray(label)
        assert set(np.unique(label)) == {0, 1 + digit}
        # Digits are lighter than what they are on, so labels that are displaced would not show it.
        assert image[label > 0].mean() > image[label == 0].mean() + 40
        assert image[label > 0].mean() > image[np.roll(label, 12, axis=(0, 1)) > 0].mean() + 20


def test_digits_are_of_different_size_and_place():
    boxes = [digits.place_digits(np.random.RandomState(seed), 4) for seed in range(50)]
    sizes = {size for scene in boxes for *_, size in scene}
    assert min(sizes) <= 22 < 34 <= max(sizes)
    assert all(min(x, y) >= 0 and max(x, y) + size <= 64 for scene in boxes for x, y, size in scene)


def test_scenes_load_with_the_config(scenes):
    cfg = Config.fromfile(ROOT / 'configs/_base_/datasets/digits_seg.py')
    found = set()
    for split, loader in (('training', cfg.train_dataloader), ('validation', cfg.val_dataloader)):
        # What `type` is taken as given here, to test the rest of the definition.
        settings = {k: v for k, v in loader.dataset.items() if k not in ('type', 'pipeline')}
        dataset = BaseSegDataset(**settings | dict(data_root=str(scenes)), pipeline=[])
        assert len(dataset) == FEW[split]
        assert len(dataset.metainfo['classes']) == len(dataset.metainfo['palette']) == 11
        for i in range(len(dataset)):
            info = dataset.get_data_info(i)
            label = LoadAnnotations()(info)['gt_seg_map']
            np.testing.assert_array_equal(label, read(info['seg_map_path']))
            assert read(info['img_path']).shape == (64, 64, 3)
            found |= set(np.unique(label))
    # Background is a class, none is lost to `reduce_zero_label`.
    assert found == set(range(11))


def test_every_run_writes_the_same_bytes(scenes, tiles, tmp_path):
    digits.write_segmentation(tmp_path / 'segmentation', FEW, progress=False)
    digits.write_classification(tmp_path / 'classification', progress=False)
    assert digits.read_tree(tmp_path / 'segmentation') == digits.read_tree(scenes)
    assert digits.read_tree(tmp_path / 'classification') == digits.read_tree(tiles)


def test_training_and_validation_scenes_differ(scenes):
    first, second = (read(scenes / 'images' / split / '0000.png') for split in FEW)
    assert (first != second).mean() > 0.9


def test_identical_set_is_kept_and_another_is_never_overwritten(tmp_path, capsys):
    target = tmp_path / 'segmentation'
    write = partial(digits.write_segmentation, num_scenes=dict(training=2, validation=1), progress=False)
    digits.make(write, target)
    digits.make(write, target)
    assert [line.split(': ')[1] for line in capsys.readouterr().out.splitlines()] == [
        'written',
        'already there and identical, kept',
    ]
    (target / 'mine.txt').write_text('precious')
    with pytest.raises(FileExistsError, match=r'holds other files.*--out'):
        digits.make(write, target)
    assert (target / 'mine.txt').read_text() == 'precious'
    assert [p.name for p in tmp_path.iterdir()] == ['segmentation']


def test_interrupted_run_leaves_nothing(tmp_path):
    def write(root):
        root.mkdir()
        (root / 'half').write_text('')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        digits.make(write, tmp_path / 'segmentation')
    assert not list(tmp_path.iterdir())


def test_command_line_fails_in_one_line(tmp_path, monkeypatch):
    (tmp_path / 'classification').mkdir()
    monkeypatch.setattr(sys, 'argv', ['digits.py', '--out', str(tmp_path), '--task', 'classification'])
    with pytest.raises(SystemExit, match=r'^digits.py: .*classification holds other files[^\n]*$'):
        digits.main()
