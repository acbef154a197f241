"""The digits sets: real digits, no digit in two splits, labels on strokes, the same bytes on every run."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.harness.config_builders import build_dataset, load
from tests.harness.small_runs import files
from tools.dataset_converters import digits

FEW = dict(training=12, validation=6)
CONFIG = 'segmentation/visiongru-pico_upernet_1xb12-1k_digits-64x64.py'


def write(root):
    digits.write_segmentation(root / 'segmentation', FEW)
    digits.write_classification(root / 'classification')
    return root


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    return write(tmp_path_factory.mktemp('digits'))


def read(path):
    return np.asarray(Image.open(path))


def test_splits_share_no_digit_and_begin_with_a_sheet():
    training, validation = digits.split_digits().values()
    assert not {image.tobytes() for _, image, _ in training} & {image.tobytes() for _, image, _ in validation}
    labels = load_digits().target.tolist()
    assert [(i, digit) for i, _, digit in training + validation] == [*enumerate(labels)]
    # Each of 14 sheets, 11 to train on, starts with 0 to 9, three times, and has the same digits then.
    text, start = ''.join(map(str, labels)), digits.FIRST_VALIDATION_DIGIT
    assert text[start : start + 30] == '0123456789' * 3
    assert [part.count('9556509898417735') for part in (text, text[:start])] == [14, 11]


def test_tiles_are_the_digits_of_scikit_learn(sets):
    data = load_digits()
    for split, indices in (('train', range(1415)), ('val', range(1415, 1797))):
        paths = {int(p.stem): p for p in (sets / 'classification' / split).glob('*/*.png')}
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
        # Digits are lighter than what is under them, so displaced labels would show.
        assert image[label > 0].mean() > image[label == 0].mean() + 40


def test_the_config_reads_the_scenes(sets):
    found = set()
    for split, name in (('train', 'training'), ('val', 'validation')):
        dataset = build_dataset(load(CONFIG), split, data_root=str(sets / 'segmentation'))
        assert len(dataset) == FEW[name]
        for sample in dataset:
            image, label = sample['inputs'], sample['data_samples'].gt_sem_seg.data
            assert (image.shape, label.shape) == ((3, 64, 64), (1, 64, 64))
            found |= set(label.unique().tolist())
    # Background is a class, none is lost to `reduce_zero_label`.
    assert found == set(range(11))


def test_every_run_writes_the_same_bytes(sets, tmp_path):
    assert files(write(tmp_path)) == files(sets)


def test_what_is_there_is_kept_and_an_interrupted_run_leaves_nothing(tmp_path, capsys, monkeypatch):
    (tmp_path / 'classification').mkdir()
    (tmp_path / 'classification/mine.txt').write_text('precious')

    def interrupted(root):
        root.mkdir()
        (root / 'half').write_text('')
        raise KeyboardInterrupt

    monkeypatch.setitem(digits.WRITERS, 'segmentation', interrupted)
    with pytest.raises(KeyboardInterrupt):
        digits.main(['--out', str(tmp_path)])
    assert 'classification: already there' in capsys.readouterr().out
    assert [*files(tmp_path)] == ['classification/mine.txt']
