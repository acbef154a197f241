"""image_demo.py on images without labels, and what all tools that read images give to a model."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmvisiongru.models import VisionGRU
from tests.harness.small_runs import CLASSIFICATION, SEGMENTATION, files, save, save_weights, write_config
from tools import test as test_tool
from tools.deployment.painting import enlarge
from tools.visualization import gate_memory, image_demo, receptive_field

COLOURS = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]
CLASSES = dict(segmentation=('wall', 'building', 'sky'), classification=('a', 'b'))
IMAGES = 'ade/images/validation'
segmentation = pytest.mark.parametrize('task', ['segmentation'], indirect=True)


@pytest.fixture(params=list(CLASSES))
def task(request, workplace):
    """A config with a checkpoint of random weights, and folders of images."""
    text, data = (SEGMENTATION, 'ade') if request.param == 'segmentation' else (CLASSIFICATION, 'inet')
    # The last stage has one token, so its maps have one class.
    finest = "model['decode_head'].update(in_channels=8, in_index=0)\n" * (data == 'ade')
    write_config(workplace / 'tiny.py', text, data, f"launcher = 'none'\n{finest}")
    meta = dict(classes=CLASSES[request.param], palette=COLOURS)
    return request.param, reconfigure(f"test_dataloader['dataset']['metainfo'] = {meta}\n")


def reconfigure(text):
    """Append to the config, and write weights that fit; gives the model. Classes are those of the config."""
    with open('tiny.py', 'a') as file:
        file.write(text)
    return save_weights('tiny.py', 'model.pth')


def demo(image, *args):
    image_demo.main([image, 'tiny.py', 'model.pth', '--device', 'cpu', *args])


def scores(image, *args):
    """Scores of the classes, as --pred-out gives them for each image."""
    demo(image, '--pred-out', 'tables/found.csv', *args)
    _, *rows = csv.reader(Path('tables/found.csv').read_text('utf-8').splitlines())
    return {image: list(map(float, values)) for image, _, _, *values in rows}


def normalised(path):
    image = np.array(Image.open(path))[..., ::-1].transpose(2, 0, 1)
    return (torch.from_numpy(image.astype(np.float32))[None] - 127) / 60


@torch.no_grad()
def maps(model, path):
    """A segmentor's scores by the model alone, (C, H, W)."""
    x = normalised(path)
    return model.decode_head.predict(model.extract_feat(x), [dict(img_shape=x.shape[2:])], {})[0]


def test_pictures_and_lines(task, capsys):
    (task, model), classes = task, CLASSES[task[0]]
    demo(IMAGES, '--opacity', '1')
    *lines, _ = capsys.readouterr().out.splitlines()
    for i, line in zip(range(3), lines, strict=True):
        assert line.startswith(f'{IMAGES}/{i}.jpg: ')
        image = np.array(Image.open(f'{IMAGES}/{i}.jpg'))
        picture = np.asarray(Image.open(f'work_dirs/demo/{i}.png'))
        assert line.endswith(' (seen at 32 x 32)')
        if task == 'classification':
            found = model(normalised(f'{IMAGES}/{i}.jpg')).softmax(1)[0].tolist()
            best = sorted(zip(found, classes, strict=True), reverse=True)
            assert f': {", ".join(f"{name} {score:.1%}" for score, name in best)} (' in line
            assert (picture[-256:, :256] == enlarge(image)).all()
        else:
            found = maps(model, f'{IMAGES}/{i}.jpg').argmax(0)
            share, best = max((float((found == k).float().mean()), name) for k, name in enumerate(classes))
            assert line.split(': ')[1].startswith(f'{best} {share:.1%}')
            # But for the names of the classes.
            painted = enlarge(np.array(COLOURS, np.uint8)[found.numpy()])
            assert (picture == painted).all(2).mean() > 0.85


RESIZED = dict(
    segmentation="""
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(90, 44), keep_ratio=True),
    dict(type='LoadAnnotations'), dict(type='PackSegInputs'),
]
model['data_preprocessor'].update(
    mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0], bgr_to_rgb=True, test_cfg=dict(size_divisor=16)
)
test_dataloader['dataset']['pipeline'] = pipeline
test_dataloader['dataset'] = dict(type='ConcatDataset', datasets=[test_dataloader['dataset']])
""",
    classification="""
pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='ResizeEdge', scale=50, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=40), dict(type='PackInputs'),
]
data_preprocessor.update(mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0], to_rgb=True)
test_dataloader['dataset']['pipeline'] = pipeline
test_dataloader['dataset'] = dict(type='ConcatDataset', datasets=[test_dataloader['dataset']])
""",
)
CORNERS = "model['decode_head']['align_corners'] = True\n"
PREPROCESSOR = dict(segmentation="model['data_preprocessor']", classification='data_preprocessor')
GREY = """
model['backbone']['in_channels'] = 1
{}.update(mean=[120.0], std=[50.0])
pipeline[0].update(color_type='grayscale')
"""
VIEWS = """
views = [
    [dict(type='Resize', scale_factor=factor, keep_ratio=True) for factor in (1.0, 1.5)],
    [dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)],
    [dict(type='LoadAnnotations')], [dict(type='PackSegInputs')],
]
test_dataloader['dataset']['pipeline'] = [pipeline[0], dict(type='TestTimeAug', transforms=views)]
model = dict(type='SegTTAModel', module=model)
"""


@pytest.fixture
def inputs(monkeypatch):
    """What backbones got."""
    seen, forward = [], VisionGRU.forward
    monkeypatch.setattr(VisionGRU, 'forward', lambda self, x: (seen.append(x.detach()), forward(self, x))[1])
    return seen


def noise(path, height, width):
    save(path, np.random.default_rng(height).integers(0, 256, (height, width, 3)))


@pytest.mark.parametrize('grey', [False, True])
def test_every_tool_gives_the_model_what_a_test_gives_it(task, grey, inputs):
    """The tensors are equal to the last bit, whatever the sizes of the images."""
    folder = Path(IMAGES if task[0] == 'segmentation' else 'inet/val')
    images = sorted(map(str, folder.rglob('*.*')))
    for image, size in zip(images, [(90, 70), (50, 81), (33, 64)], strict=False):
        noise(image, *size)
        if task[0] == 'segmentation':
            save(image.replace('images', 'annotations').replace('jpg', 'png'), np.ones(size))
    reconfigure(GREY.format(PREPROCESSOR[task[0]]) if grey else RESIZED[task[0]])
    one = ['--cfg-options', 'test_dataloader.batch_size=1']
    test_tool.main(['tiny.py', 'model.pth', '--work-dir', 'work', *one])
    # Those before are of checks.
    expected, images = inputs[-len(images) :][:3], images[:3]
    for tool in (image_demo, gate_memory, receptive_field):
        inputs.clear()
        for image in images:
            if tool is image_demo:
                demo(image)
            else:
                tool.main(['tiny.py', 'model.pth', '--img', image, '--out', 'insight/x'])
        assert len(inputs) == len(expected)
        assert all(torch.equal(x, y) for x, y in zip(inputs, expected, strict=True)), tool.__name__


def test_insight_takes_images_of_one_size_or_a_shape(task, inputs, capsys, refused):
    reconfigure(RESIZED[task[0]])
    for i, size in enumerate([(90, 70), (50, 120)]):
        save(f'own/{i}.png', np.full((*size, 3), (200, 30, 10)))
    args = ['tiny.py', 'model.pth', '--img', 'own', '--out', 'insight/x']
    if task[0] == 'segmentation':
        assert '--shape' in refused(receptive_field, *args)
    receptive_field.main([*args, '--shape', '48', '64'])
    # Red comes first.
    colour = torch.tensor([80 / 60, -80 / 50, -90 / 40])
    assert [x.shape[2:] for x in inputs] == [(48, 64)] * 2
    assert all(torch.allclose(x[0, :, 5, 5], colour) for x in inputs)
    assert '64 x 48' in capsys.readouterr().out


@segmentation
@pytest.mark.parametrize('text', [RESIZED['segmentation'], VIEWS, CORNERS])
def test_shares_are_those_of_a_test(task, text, monkeypatch):
    """Labelled without the logits of all classes at full size."""
    monkeypatch.setattr(image_demo, 'MOST_LOGITS', 2 * 6300)
    noise(f'{IMAGES}/0.jpg', 70, 90)
    save('ade/annotations/validation/0.png', np.ones((70, 90)))
    reconfigure(text)
    test_tool.main(['tiny.py', 'model.pth', '--work-dir', 'work', '--out', 'maps'])
    for image, found in scores(IMAGES).items():
        labels = np.asarray(Image.open(f'maps/{Path(image).stem}.png')) - 1
        assert found == pytest.approx([(labels == k).mean() for k in range(3)], abs=1e-6)


@segmentation
def test_one_output_channel(task):
    """The second class is where the score is above the threshold."""
    text = """
model['decode_head'].update(num_classes=2, out_channels=1, threshold={})
model['decode_head']['loss_decode'] = dict(type='CrossEntropyLoss', use_sigmoid=True)
test_dataloader['dataset'].update(type='BaseSegDataset', metainfo=dict(classes=('back', 'front')))
"""
    noise('own.png', 128, 160)
    threshold = float(maps(reconfigure(text.format(0.3)), 'own.png').sigmoid().quantile(0.7))
    reconfigure(text.format(threshold))
    assert scores('own.png')['own.png'] == pytest.approx([0.7, 0.3], abs=0.01)


def test_weights_of_bfloat16_say_much_the_same(task, inputs):
    full, half = scores(IMAGES), scores(IMAGES, '--dtype', 'bfloat16')
    difference = np.abs(np.array(list(full.values())) - list(half.values())).max()
    assert difference < 0.1
    assert task[0] == 'segmentation' or difference > 0
    # Images lose no digits before they meet the model, whose weights are converted.
    assert {x.dtype for x in inputs} == {torch.float32}
    assert all(torch.equal(x, y) for x, y in zip(inputs[:3], inputs[3:], strict=True))


def test_classes_of_one_name_stay_apart():
    assert image_demo.distinct(['crane', 'gull', 'crane']) == ['crane (0)', 'gull', 'crane (2)']


def test_folders_inside_and_a_table(task, capsys):
    """Images of equal names in several folders, and names that no 8-bit locale has."""
    names = ('a/0.jpg', 'a/b/0.jpg', 'a/b/1.2.jpg', 'a/ä ß/日本.jpg')
    for name in names:
        os.makedirs(os.path.dirname(f'own/{name}'), exist_ok=True)
        shutil.copy(f'{IMAGES}/{len(name) % 3}.jpg', f'own/{name}')
    found = scores('own')
    assert found.keys() == {f'own/{name}' for name in names}
    assert all(sum(row) == pytest.approx(1, abs=1e-5) for row in found.values())
    assert f'image,height,width,{",".join(CLASSES[task[0]])}\n' in Path('tables/found.csv').read_text('utf-8')
    assert '4 pictures in work_dirs/demo, tables/found.csv' in capsys.readouterr().out
    pictures = {str(path.relative_to('work_dirs/demo')) for path in Path('work_dirs/demo').rglob('*.png')}
    assert pictures == {name.replace('.jpg', '.png') for name in names}


def test_thin_and_very_large_images(task, monkeypatch, capsys):
    """One row of pixels, and more pixels than PIL opens without a complaint (179 million by default)."""
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10_000)
    sizes = dict(column=(40, 1), large=(160, 150), row=(1, 97))
    for name, size in sizes.items():
        noise(f'own/{name}.png', *size)
    demo('own')
    lines = capsys.readouterr().out.splitlines()[-4:-1]
    assert [line.split('seen at ')[-1] for line in lines] == [f'{w} x {h})' for h, w in sizes.values()]


@segmentation
def test_input_that_cannot_be_used(task, refused):
    os.mkdir('empty')
    for name in ('0.png', '0.jpg'):
        noise(f'own/{name}', 64, 64)
    Path('none.png').touch()
    Path('short.png').write_bytes(Path('own/0.png').read_bytes()[:30])
    before = files('.')
    for image, args, words in (
        ('none.jpg', [], 'image none.jpg does not exist'),
        ('tiny.py', [], 'tiny.py is not an image'),
        ('none.png', [], 'none.png is not an image'),
        ('short.png', [], 'short.png cannot be prepared'),
        ('empty', [], 'no image (.png, .jpg, .jpeg'),
        (IMAGES, ['--out-dir', 'ade/../ade/images/validation/new'], 'is among the data'),
        ('own', ['--out-dir', 'own/pictures'], 'is among the data'),
        ('own/0.jpg', ['--out-dir', 'own'], 'own/0.png exists'),
        ('own/0.jpg', ['--pred-out', 'x.txt'], '--pred-out must end in .csv'),
        ('own/0.jpg', ['--cfg-options', 'model.backbone.archh=1'], 'archh'),
        ('own/0.jpg', ['--device', 'cuda:99'], 'device cuda:99 cannot be used'),
        ('own/0.jpg', 'none.pth', 'checkpoint none.pth '),
    ):
        args = ['model.pth', *args] if isinstance(args, list) else [args]
        assert words in refused(image_demo, image, 'tiny.py', *args)
        assert files('.') == before
