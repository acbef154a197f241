"""Broken images and labels: named with file and value, skipped up to a cap."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.registry import init_default_scope
from PIL import Image
from torch.utils.data import DataLoader

from mmvisiongru.engine.guarded_dataset import GuardedDataset
from mmvisiongru.errors import InputError
from tests.harness import need_mmseg
from tests.harness.small_runs import save
from tests.harness.toy import toy_runner

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]


@pytest.fixture
def scenes(tmp_path):
    """Three images of 24 x 32 with their maps, in the layout of mmseg."""
    rng = np.random.default_rng(0)
    for i in range(3):
        save(tmp_path / f'img/{i}.jpg', rng.integers(0, 256, (24, 32, 3)))
        save(tmp_path / f'map/{i}.png', rng.integers(0, 3, (24, 32)))
    return tmp_path


def segmentation(root, max_bad_samples=None, pipeline=PIPELINE, inside=False, **more) -> GuardedDataset:
    need_mmseg()
    init_default_scope('mmseg')
    dataset = dict(
        type='BaseSegDataset', data_root=str(root), data_prefix=dict(img_path='img', seg_map_path='map'),
        metainfo=dict(classes=('a', 'b', 'c')), pipeline=pipeline, **more,
    )  # fmt: skip
    dataset = dict(type='ConcatDataset', datasets=[dataset]) if inside else dataset
    return GuardedDataset(dataset, seed=0, max_bad_samples=max_bad_samples)


def cut(path: Path, share: float = 0.6) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


LABEL = np.zeros((24, 32), 'uint8')
FAULTS = {
    'empty image': (lambda r: (r / 'img/1.jpg').write_bytes(b''), r'img/1\.jpg is empty'),
    'cut image': (lambda r: cut(r / 'img/1.jpg'), r'img/1\.jpg is cut short'),
    'no image': (lambda r: (r / 'img/1.jpg').write_text('<html>'), r'cannot identify .*img/1\.jpg'),
    'missing image': (lambda r: (r / 'img/1.jpg').unlink(), r'img/1\.jpg does not exist'),
    'image of another size': (
        lambda r: Image.new('RGB', (31, 24)).save(r / 'img/1.jpg'),
        r'map/1\.png has \(32, 24\) pixels, its image \(31, 24\)',
    ),
    'cut map': (lambda r: cut(r / 'map/1.png'), r'map/1\.png is cut short'),
    'missing map': (lambda r: (r / 'map/1.png').unlink(), r'map/1\.png does not exist'),
    'label out of range': (
        lambda r: save(r / 'map/1.png', LABEL + np.eye(24, 32) * 3),
        r'map/1\.png contains label 3, .* 0 to 2',
    ),
    '16 bits': (
        lambda r: Image.fromarray(LABEL.astype('uint16') + np.uint16(300)).save(r / 'map/1.png'),
        r'map/1\.png has the value 300',
    ),
    'colour': (lambda r: save(r / 'map/1.png', np.stack([LABEL] * 3, 2)), r'map/1\.png has mode RGB'),
    'all ignored': (
        lambda r: save(r / 'map/1.png', LABEL + np.uint8(255)),
        r'every pixel of .*map/1\.png is ignored',
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_fault_is_named_and_skipped_in_training_and_ends_an_evaluation(scenes, fault):
    make, message = FAULTS[fault]
    # The list of files comes first, as in a run; a file may go bad or vanish later.
    dataset, evaluation = segmentation(scenes, max_bad_samples=2), segmentation(scenes)
    good = evaluation[2]
    make(scenes)
    for _ in range(2):
        assert torch.equal(dataset[1]['inputs'], good['inputs'])
    files = f'{scenes}/img/1.jpg with {scenes}/map/1.png'
    assert (dataset.bad.tolist(), dataset.bad_files()) == ([0, 1, 0], [files])
    if fault == 'all ignored':
        assert (evaluation[1]['data_samples'].gt_sem_seg.data == 255).all()
        with pytest.raises(ValueError, match=message):
            dataset.load(1)
        return
    with pytest.raises(InputError, match=f'sample 1, {files}: .*{message}'):
        evaluation[1]


def test_ignored_pixels_are_no_fault(scenes):
    # In a crop of a map that has labels elsewhere.
    save(scenes / 'map/1.png', np.pad(LABEL[:, :1], ((0, 0), (0, 31)), constant_values=255))
    crop = [*PIPELINE[:2], dict(type='RandomCrop', crop_size=(8, 8)), PIPELINE[2]]
    dataset = segmentation(scenes, max_bad_samples=0, pipeline=crop)
    np.random.seed(0)
    draws = [dataset[1]['data_samples'].gt_sem_seg.data for _ in range(20)]
    assert any((d == 255).all() for d in draws)


def test_reduced_labels_are_named_as_in_the_file(scenes):
    save(scenes / 'map/1.png', LABEL + np.uint8(3))
    pipeline = [PIPELINE[0], dict(type='LoadAnnotations', reduce_zero_label=True), PIPELINE[2]]
    segmentation(scenes, pipeline=pipeline, reduce_zero_label=True)[1]
    save(scenes / 'map/1.png', LABEL + np.uint8(4))
    with pytest.raises(InputError, match=r'contains label 3 \(4 in the file\), .* 0 to 2'):
        segmentation(scenes, pipeline=pipeline, reduce_zero_label=True)[1]


def test_odd_but_whole_files_are_no_fault(scenes):
    with open(scenes / 'img/0.jpg', 'ab') as file:
        file.write(b'a video with the bytes \xff\xda behind the end' * 10)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (24, 32)).save(scenes / 'img/1.jpg', exif=exif)
    Image.fromarray(LABEL, mode='L').convert('P').save(scenes / 'map/2.png')
    dataset = segmentation(scenes)
    assert [dataset[i]['inputs'].shape for i in range(3)] == [(3, 24, 32)] * 3


def test_label_of_a_classifier_out_of_range_and_a_file_that_is_no_image(tmp_path):
    init_default_scope('mmpretrain')
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
    (tmp_path / 'list.txt').write_text('a.png 2\n')
    dataset = dict(
        type='CustomDataset', data_root=str(tmp_path), ann_file='list.txt', metainfo=dict(classes=('x', 'y')),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
    )  # fmt: skip
    with pytest.raises(InputError, match=r'a\.png contains label 2, .* 0 to 1'):
        GuardedDataset(dataset, seed=0)[0]
    # No map is compared with it. The decoder asserts, which is no fault of the program.
    (tmp_path / 'a.png').write_text('<html>')
    with pytest.raises(InputError, match=r'a\.png: failed to load image'):
        GuardedDataset(dataset, seed=0)[0]


def test_batches_of_the_data_set_do_not_pass_the_checks_by(scenes):
    """Some data sets, as those of Hugging Face, give complete batches too."""
    dataset = segmentation(scenes)
    type(dataset.dataset).__getitems__ = lambda self, indices: [dict(inputs=torch.zeros(1)) for _ in indices]
    (scenes / 'img/1.jpg').unlink()
    try:
        with pytest.raises(InputError, match=r'sample 1, .* does not exist'):
            list(DataLoader(dataset, batch_size=2, collate_fn=list))
    finally:
        del type(dataset.dataset).__getitems__


def test_run_sums_up_what_it_skipped(tmp_path):
    broken = {'train_dataloader.dataset.broken': [3, 7], 'max_bad_samples': 2}
    toy_runner(tmp_path, **broken, **{'default_hooks.bad': dict(type='mmvisiongru.BadSampleHook')}).train()
    log = next(tmp_path.rglob('*.log')).read_text()
    assert log.count('bad sample skipped: sample 3, no file known: OSError: this one is broken') == 1
    assert '2 bad samples were skipped' in log


@pytest.mark.parametrize(
    ('broken', 'workers'), [([3, 7, 9], 0), ([3, 7, 9], 1), (list(range(12)), 0)], ids=['0', '1', 'all']
)
def test_more_than_the_cap_ends_the_run(tmp_path, broken, workers):
    more = {'train_dataloader.dataset.broken': broken, 'max_bad_samples': 2}
    runner = toy_runner(tmp_path, workers=workers, **more)
    with pytest.raises(InputError, match=r'3 bad samples, more than max_bad_samples=2: .*this one is broken'):
        runner.train()
    assert runner.iter < 4


def test_a_data_set_without_a_good_sample_ends_the_run(scenes):
    dataset = segmentation(scenes, max_bad_samples=9)
    for i in range(3):
        (scenes / f'img/{i}.jpg').write_bytes(b'')
    with pytest.raises(InputError, match=r'all 3 samples are bad; the last: sample 0, .*img/0\.jpg is empty'):
        dataset[1]


class KeyBackend(LocalBackend):
    """A store: the keys are the names of files in ``root``, and look like paths."""

    def __init__(self, root):
        self.root = Path(root)

    def get(self, filepath):
        return (self.root / filepath).read_bytes()

    def list_dir_or_file(self, dir_path, *args, **kwargs):
        yield from super().list_dir_or_file(self.root / dir_path, *args, **kwargs)


register_backend('keys', KeyBackend, force=True)


@pytest.mark.parametrize('inside', [False, True])
def test_files_of_another_backend_are_left_to_it(scenes, tmp_path, monkeypatch, inside):
    """The keys name local files that have nothing to do with the data set."""
    monkeypatch.chdir(tmp_path / 'map')
    for key in ('img/1.jpg', 'map/1.png'):
        Path(key).parent.mkdir()
        Path(key).write_bytes(b'')
    args = dict(backend='keys', root=str(scenes))
    pipeline = [dict(PIPELINE[0], backend_args=args), dict(PIPELINE[1], backend_args=args), PIPELINE[2]]
    dataset = segmentation('', pipeline=pipeline, inside=inside, backend_args=args)
    assert torch.equal(dataset[1]['inputs'], segmentation(scenes)[1]['inputs'])
    # What is missing there is named.
    (scenes / 'map/2.png').unlink()
    with pytest.raises(InputError, match=r'map/2\.png'):
        dataset[2]


def test_attributes_are_those_of_the_data_set(scenes):
    dataset = segmentation(scenes)
    dataset.pipeline = lambda info: dict(seen=info['img_path'])
    dataset.epoch = 'kept'
    assert dataset[1] == dict(seen=f'{scenes}/img/1.jpg')
    assert dataset.dataset.epoch == dataset.epoch == 'kept'
    assert vars(dataset).keys() == GuardedDataset.OWN
