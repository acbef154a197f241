"""Where tools write, and the pictures that they draw, through the scripts."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from matplotlib import font_manager
from mmengine.structures import PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from PIL import Image

from mmvisiongru.errors import InputError
from tests.harness.small_runs import files
from tools import test as test_tool
from tools.deployment import painting
from tools.deployment.painting import find_font, paint
from tools.outputs import output_paths, write_picture
from tools.visualization import browse_dataset
from tools.visualization.drawing import draw_sample


def test_maps_and_pictures_of_equal_names_stay_apart(segmentor, capfd):
    """Two folders with a 0.jpg each; mmseg's metric would write one 0.png."""
    for kind, suffix in (('images', 'jpg'), ('annotations', 'png')):
        folder = Path('ade', kind, 'validation')
        for name, source in (('a', 0), ('b', 1)):
            (folder / name).mkdir()
            shutil.copy(folder / f'{source}.{suffix}', folder / name / f'0.{suffix}')
    test_tool.main([segmentor, 'fits.pth', '--out', 'maps', '--show-dir', 'shown'])
    maps = files('maps')
    assert [*maps] == [*files('shown')] == ['0.png', '1.png', '2.png', 'a/0.png', 'b/0.png']
    assert maps['a/0.png'] == maps['0.png'] != maps['1.png'] == maps['b/0.png']
    # As in the files of the data set, 0 is the ignored class.
    assert set(np.unique(np.asarray(Image.open('maps/0.png')))) <= {1, 2, 3}
    said = ''.join(capfd.readouterr())
    assert '5 pictures in shown' in said
    assert '5 label maps in maps' in said


def test_maps_of_some_classes_are_numbered_as_in_the_files(tmp_path):
    class Some(list):
        metainfo = dict(label_map={0: 255, 4: 0, 13: 1})
        get_data_info = list.__getitem__

    loader = SimpleNamespace(dataset=Some([dict(img_path='0.jpg')]))
    hook = test_tool.LabelMapHook(str(tmp_path))
    hook.before_test(SimpleNamespace(test_loop=SimpleNamespace(dataloader=loader)))
    sample = SegDataSample(metainfo=dict(img_path='0.jpg', reduce_zero_label=True))
    sample.pred_sem_seg = PixelData(data=torch.tensor([[[0, 1], [1, 1]]]))
    hook.after_test_iter(None, 0, outputs=[sample])
    assert np.asarray(Image.open(tmp_path / '0.png')).tolist() == [[5, 14], [14, 14]]


def test_a_segmentor_writes_nothing_among_its_data(segmentor, refused):
    os.symlink('ade/images/validation', 'link')
    before = files('ade')
    for folder in ('ade/annotations/validation', 'ade/images/training/new', 'link/new'):
        for option in ('--out', '--show-dir'):
            line = refused(test_tool, segmentor, 'fits.pth', option, folder)
            assert (folder in line, 'among the data' in line) == (True, True)
    assert files('ade') == before


def test_a_picture_never_becomes_a_sample(classifier, refused):
    before = files('inet')
    assert 'is among the data' in refused(test_tool, classifier, 'fits.pth', '--show-dir', 'inet/val/shown')
    assert 'is among the data' in refused(browse_dataset, classifier, '--out', 'inet/train')
    assert files('inet') == before


def test_browsing_takes_images_without_a_path_and_names_a_broken_one(classifier, refused):
    no_path = 'train_dataloader.dataset.pipeline.1.meta_keys=[]'
    browse_dataset.main([classifier, '--out', 'browsed', '--number', '1', '--cfg-options', no_path])
    assert [*files('browsed')] == ['000_image.png']
    Path('inet/train/b/2.png').write_bytes(b'no image')
    assert 'inet/train/b/2.png' in refused(browse_dataset, classifier)


def test_browsing_names_a_data_set_without_samples(segmentor, refused):
    option = ('--cfg-options', 'val_dataloader.dataset.img_suffix=.tif')
    assert 'val_dataloader.dataset in' in refused(browse_dataset, segmentor, '--split', 'val', *option)


def test_images_that_are_no_files_are_refused():
    with pytest.raises(InputError, match='no files'):
        test_tool.PictureHook('shown').before_test(Mock(**{'test_loop.dataloader.dataset': [0]}))


def test_no_picture_leaves_the_folder(classifier):
    """Paths of a list may lead upwards."""
    Path('list.txt').write_text('../0.png 0\n0.png 1\n')
    for path in ('inet/0.png', 'inet/val/0.png'):
        shutil.copy('inet/val/a/0.png', path)
    before, option = files('.'), 'test_dataloader.dataset.ann_file=../list.txt'
    test_tool.main([classifier, 'fits.pth', '--show-dir', 'shown', '--cfg-options', option])
    new = [path for path in files('.').keys() - before.keys() if not path.startswith('work_dirs/')]
    assert sorted(new) == ['shown/0.png', 'shown/val/0.png']


def test_files_of_others_are_kept(here):
    images = ['in/0.jpg', 'in/a/0.png', 'in/a/0.jpg']
    paths = output_paths(images, 'out')
    assert paths == {image: f'out{image[2:]}.png' for image in images}
    for path in paths.values():
        write_picture(path, np.zeros((2, 2), np.uint8))
    # Its own pictures are replaced by the next call.
    assert output_paths(images, 'out') == paths
    Image.new('L', (2, 2)).save('out/a/0.png.png')
    with pytest.raises(InputError, match=r'out/a/0\.png\.png exists'):
        output_paths(images, 'out')
    with pytest.raises(InputError, match='could not be written'):
        write_picture('out/0.jpg.png/x.png', np.zeros((2, 2), np.uint8))


def segmented(truth, prediction):
    truth, prediction = (PixelData(data=torch.from_numpy(labels)[None]) for labels in (truth, prediction))
    return SegDataSample(gt_sem_seg=truth, pred_sem_seg=prediction)


PALETTE = [[250, 250, 250], [20, 90, 160]]


def test_a_segmentors_picture_hides_nothing():
    """Image, truth and prediction are complete; only names of classes stand in the last two."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (300, 400, 3)).astype(np.uint8)
    truth = np.zeros((300, 400), np.int64)
    truth[:, 200:] = 1
    truth[:30] = 255
    prediction = 1 - truth.clip(0, 1)
    picture = draw_sample(image, segmented(truth, prediction), ('a', 'b'), PALETTE, opacity=1)
    top = picture.shape[0] - 300
    gap = (picture.shape[1] - 1200) // 2
    panels = [picture[top:, i * (400 + gap) : i * (400 + gap) + 400] for i in range(3)]
    assert (panels[0] == image).all()
    colours = np.array([*PALETTE, [0, 0, 0]], np.uint8)
    for panel, labels in zip(panels[1:], (truth.clip(max=2), prediction), strict=True):
        same = (panel == colours[labels]).all(2)
        assert 0.97 < same.mean() < 1
    # White on a light colour would not be seen.
    assert (panels[1][:, :200] < 60).all(2).any()
    # Captions are above the images.
    assert all((picture[:top, i * (400 + gap) : (i + 1) * 400] < 60).any() for i in range(3))


def letters(labels, names):
    """Bright pixels of the names that are drawn on a map of dark classes."""
    dark = [[9 * i, 100, 120] for i in range(len(names))]
    return (paint(np.zeros((*labels.shape, 3), np.uint8), labels, names, dark, 1) > 180).all(2)


def test_classes_without_names_have_their_numbers():
    labels, image = np.arange(12).reshape(3, 4) % 3, np.zeros((3, 4, 3), np.uint8)
    named = draw_sample(image, segmented(labels, labels), ('0', '1', '2'))
    assert (draw_sample(image, segmented(labels, labels)) == named).all()


def test_names_neither_run_off_the_edge_nor_cover_each_other():
    names, empty = ('corner', 'middle'), np.full((300, 300), 255)
    corner, upper, lower = (empty.copy() for _ in range(3))
    corner[290:, 290:] = 0
    upper[120:140, 130:170] = 0
    lower[140:150, 130:170] = 1
    seen = [letters(labels, names).sum() for labels in (corner, upper, lower, np.minimum(upper, lower))]
    assert seen[0] == pytest.approx(seen[1], rel=0.1)
    assert seen[3] == pytest.approx(seen[1] + seen[2], rel=0.05)
    # Smaller letters where the image is not wide enough.
    long = letters(upper, (12 * 'many words ', ''))
    assert long.any()
    assert not long[:, [0, -1]].any()


def test_a_classifiers_text_stands_above_the_image_and_makes_room():
    image = np.full((64, 64, 3), 7, np.uint8)
    sample = DataSample().set_gt_label(0).set_pred_label(1).set_pred_score(torch.tensor([0.1, 0.9]))
    short, long = (draw_sample(image, sample, ('a', name)) for name in ('b', 40 * 'long '))
    for picture in (short, long):
        assert (picture[-256:, :256] == 7).all()
        assert (picture[-256:, 256:] != 7).all()
    assert long.shape[1] > short.shape[1] >= 256
    # The last letters are there.
    assert (long[:-256, -30:] < 60).any()


def test_a_font_that_has_the_letters_is_found(tmp_path, monkeypatch, capsys):
    default, stix = find_font(['aäßé', 'b']), font_manager.findfont('STIXGeneral')
    assert 'DejaVu' in default
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda: [str(tmp_path / 'none.ttf'), stix])
    assert find_font(['ᶁ']) == stix
    assert capsys.readouterr().err == ''
    # Drawn with and without a caption: one line for all classes.
    classes, labels = ('日', '本'), np.zeros((4, 4), np.int64)
    draw_sample(np.zeros((4, 4, 3), np.uint8), segmented(labels, labels), classes)
    (message,) = capsys.readouterr().err.splitlines()
    assert all(letter in message for letter in classes)
    # The font of pillow lacks umlauts.
    monkeypatch.setattr(painting, '_font_files', lambda: [str(tmp_path / 'none.ttf'), None])
    assert find_font(['aü']) is None
    assert 'has ü;' in capsys.readouterr().err
