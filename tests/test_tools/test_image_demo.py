"""image_demo.py on images without labels, and what all tools that read images give to a model."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from torch.nn.functional import interpolate

from mmvisiongru.drawing import enlarge
from mmvisiongru.models import VisionGRU
from tests.harness.small_runs import CLASSIFICATION, SEGMENTATION, write_config
from tools import test as test_tool
from tools.visualization import gate_memory, image_demo, receptive_field

COLOURS = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]
TASKS = dict(
    segmentation=(SEGMENTATION, 'ade', ('wall', 'building', 'sky')),
    classification=(CLASSIFICATION, 'inet', ('a', 'b')),
)
IMAGES = 'ade/images/validation'
segmentation = pytest.mark.parametrize('task', ['segmentation'], indirect=True)


@pytest.fixture(params=list(TASKS))
def task(request, workplace):
    """A config with a checkpoint of random weights, and folders of images."""
    text, data, classes = TASKS[request.param]
    meta = dict(classes=classes, palette=COLOURS)
    write_config(
        workplace / 'tiny.py',
        text,
        data,
        f"launcher = 'none'\ntest_dataloader['dataset']['metainfo'] = {meta}\n",
    )
    return request.param, reconfigure(''), classes


def reconfigure(text):
    """Append to the config, and write weights that fit; gives the model."""
    with open('tiny.py', 'a') as file:
        file.write(text)
    cfg = Config.fromfile('tiny.py')
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    meta = dict(dataset_meta=dict(cfg.test_dataloader.dataset.metainfo))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), 'model.pth')
    return model.eval()


def demo(image, *args):
    image_demo.main([image, 'tiny.py', 'model.pth', '--device', 'cpu', *args])


def scores(image, *args):
    """What --pred-out says of each image."""
    demo(image, '--pred-out', 'found.json', *args)
    return {k: v['scores'] for k, v in json.loads(Path('found.json').read_text('utf-8')).items()}


def maps(model, path):
    """A segmentor's scores by the model alone, (C, H, W)."""
    image = torch.from_numpy(np.array(Image.open(path))[..., ::-1].copy()).permute(2, 0, 1)
    with torch.no_grad():
        features = model.extract_feat((image.float()[None] - 127) / 60)
        return model.decode_head.predict(features, [dict(img_shape=image.shape[1:])], {})[0]


def test_pictures_and_lines(task, capsys):
    task, model, classes = task
    demo(IMAGES, '--opacity', '1')
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('ade/')]
    assert [line.split(': ')[0] for line in lines] == [f'{IMAGES}/{i}.jpg' for i in range(3)]
    for i, line in enumerate(lines):
        image = np.array(Image.open(f'{IMAGES}/{i}.jpg'))
        picture = np.asarray(Image.open(f'work_dirs/demo/{i}.png'))
        assert line.endswith(' (seen at 32 x 32)')
        if task == 'classification':
            x = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None]
            found = model((x.float() - 127) / 60).softmax(1)[0].tolist()
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
""",
    classification="""
pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='ResizeEdge', scale=50, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=40), dict(type='PackInputs'),
]
data_preprocessor.update(mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0], to_rgb=True)
test_dataloader['dataset']['pipeline'] = pipeline
""",
)
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
test_dataloader['dataset']['pipeline'] = [
    dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=views)
]
model = dict(type='SegTTAModel', module=model)
"""


@pytest.fixture
def inputs(monkeypatch):
    """What backbones got."""
    seen, forward = [], VisionGRU.forward
    monkeypatch.setattr(VisionGRU, 'forward', lambda self, x: (seen.append(x.detach()), forward(self, x))[1])
    return seen


def noise(path, height, width):
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype('uint8')
    Image.fromarray(image).save(path)


@pytest.mark.parametrize('grey', [False, True])
def test_every_tool_gives_the_model_what_a_test_gives_it(task, grey, inputs):
    """The tensors are equal to the last bit, whatever the sizes of the images."""
    images = [
        str(path) for path in sorted(Path(IMAGES if task[0] == 'segmentation' else 'inet/val').rglob('*.*'))
    ]
    for image, size in zip(images, [(90, 70), (50, 81), (33, 64)], strict=False):
        noise(image, *size)
        if task[0] == 'segmentation':
            label = image.replace('images', 'annotations').replace('jpg', 'png')
            Image.new('L', size[::-1], 1).save(label)
    reconfigure(GREY.format(PREPROCESSOR[task[0]]) if grey else RESIZED[task[0]])
    test_tool.main(
        ['tiny.py', 'model.pth', '--work-dir', 'work', '--cfg-options', 'test_dataloader.batch_size=1']
    )
    # Those before are of checks.
    expected = inputs[-len(images) :]
    for tool in (image_demo, gate_memory, receptive_field):
        inputs.clear()
        for image in images:
            if tool is image_demo:
                demo(image)
            else:
                tool.main(['tiny.py', 'model.pth', '--img', image, '--out', 'insight/x'])
        assert len(inputs) == len(expected)
        assert all(torch.equal(x, y) for x, y in zip(inputs, expected, strict=True)), tool.__name__


def test_insight_takes_images_of_one_size_or_a_shape(task, inputs, capsys):
    reconfigure(RESIZED[task[0]])
    os.mkdir('own')
    for i, size in enumerate([(70, 90), (120, 50)]):
        Image.new('RGB', size, (200, 30, 10)).save(f'own/{i}.png')
    args = ['tiny.py', 'model.pth', '--img', 'own', '--out', 'insight/x']
    if task[0] == 'segmentation':
        with pytest.raises(SystemExit, match='2'):
            receptive_field.main(args)
        assert '--shape' in capsys.readouterr().err
    receptive_field.main([*args, '--shape', '48', '64'])
    # Red comes first.
    colour = torch.tensor([80 / 60, -80 / 50, -90 / 40])
    assert [x.shape[2:] for x in inputs] == [(48, 64)] * 2
    assert all(torch.allclose(x[0, :, 5, 5], colour) for x in inputs)
    assert '64 x 48' in capsys.readouterr().out


@segmentation
@pytest.mark.parametrize('text', [RESIZED['segmentation'], VIEWS], ids=['padded', 'augmented'])
def test_shares_are_those_of_a_test(task, text, monkeypatch):
    """Labelled without the logits of all classes at full size."""
    monkeypatch.setattr(image_demo, 'MOST_LOGITS', 2 * 6300)
    noise(f'{IMAGES}/0.jpg', 70, 90)
    Image.new('L', (90, 70), 1).save('ade/annotations/validation/0.png')
    reconfigure(text)
    test_tool.main(['tiny.py', 'model.pth', '--work-dir', 'work', '--out', 'maps'])
    for image, found in scores(IMAGES).items():
        labels = np.asarray(Image.open(f'maps/{Path(image).stem}.png')) - 1
        assert list(found.values()) == pytest.approx([(labels == k).mean() for k in range(3)])


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('most', [1, 3 * 2000, 1 << 25])
def test_argmax_of_resized_logits(align_corners, most, monkeypatch):
    monkeypatch.setattr(image_demo, 'MOST_LOGITS', most)
    logits = torch.randn(7, 9, 11, generator=torch.Generator().manual_seed(0))
    # Equal scores: the first of the classes.
    logits[5] = logits[2]
    for size in ((50, 40), (5, 9), (1, 1), (23, 3)):
        resized = interpolate(logits[None], size, mode='bilinear', align_corners=align_corners)[0]
        assert torch.equal(image_demo.resized_argmax(logits, size, align_corners), resized.argmax(0)[None])


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
    assert scores('own.png')['own.png'] == pytest.approx(dict(back=0.7, front=0.3), abs=0.01)


def test_weights_of_bfloat16_say_much_the_same(task, inputs):
    full, half = scores(IMAGES), scores(IMAGES, '--dtype', 'bfloat16')
    differences = [abs(value - full[path][name]) for path in half for name, value in half[path].items()]
    assert max(differences) < 0.1
    assert task[0] == 'segmentation' or max(differences) > 0
    # Images lose no digits before they meet the model, whose weights are converted.
    assert [x.dtype for x in inputs] == 6 * [torch.float32]
    assert all(torch.equal(x, y) for x, y in zip(inputs[:3], inputs[3:], strict=True))


def test_classes_of_one_name_stay_apart():
    """ImageNet has two cranes."""
    assert image_demo.distinct(['crane', 'gull', 'crane']) == ['crane (0)', 'gull', 'crane (2)']


def test_folders_inside_and_a_table(task, capsys):
    """Images of equal names in several folders, and names that no 8-bit locale has."""
    names = ('a/0.jpg', 'a/b/0.jpg', 'a/b/1.2.jpg', 'a/ä ß/日本.jpg')
    for name in names:
        os.makedirs(os.path.dirname(f'own/{name}'), exist_ok=True)
        shutil.copy(f'{IMAGES}/{len(name) % 3}.jpg', f'own/{name}')
    demo('own', '--pred-out', 'tables/found.csv')
    assert '4 pictures in work_dirs/demo, tables/found.csv' in capsys.readouterr().out
    pictures = [str(path.relative_to('work_dirs/demo')) for path in Path('work_dirs/demo').rglob('*.png')]
    assert sorted(pictures) == sorted(name.replace('.jpg', '.png') for name in names)
    head, *rows = csv.reader(Path('tables/found.csv').read_text(encoding='utf-8').splitlines())
    assert head == ['image', 'height', 'width', *task[2]]
    table = {image: dict(zip(task[2], map(float, values), strict=True)) for image, _, _, *values in rows}
    expected = scores('own')
    assert table.keys() == expected.keys() == {f'own/{name}' for name in names}
    assert all(table[image] == pytest.approx(expected[image], abs=1e-6) for image in table)


@segmentation
def test_classes_are_those_of_the_config(task):
    """Converted checkpoints name none."""
    expected = scores(IMAGES)
    torch.save(dict(state_dict=task[1].state_dict(), meta={}), 'model.pth')
    assert scores(IMAGES) == expected


def test_thin_and_very_large_images(task, monkeypatch, capsys):
    """One row of pixels, and more pixels than PIL opens without a complaint (179 million by default)."""
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10_000)
    os.mkdir('own')
    for name, size in (('row', (97, 1)), ('column', (1, 40)), ('large', (150, 160))):
        Image.new('RGB', size, (9, 99, 200)).save(f'own/{name}.png')
    demo('own')
    lines = capsys.readouterr().out.splitlines()
    assert [line.split('seen at ')[-1] for line in lines[-4:-1]] == ['1 x 40)', '150 x 160)', '97 x 1)']
    demo('own')


class Attack:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ('made',)


@pytest.mark.parametrize(
    ('image', 'args', 'words'),
    [
        ('none.jpg', [], 'image none.jpg does not exist'),
        ('tiny.py', [], 'tiny.py is not an image'),
        ('none.png', [], 'none.png is not an image'),
        ('short.png', [], 'short.png cannot be prepared'),
        ('empty', [], 'no image (.png, .jpg, .jpeg'),
        (IMAGES, ['--out-dir', 'ade/../ade/images/validation/new'], 'is among the data'),
        ('own', ['--out-dir', 'own/pictures'], 'is among the data'),
        ('own/0.jpg', ['--out-dir', 'own'], 'own/0.png exists'),
        ('own/0.jpg', ['--pred-out', 'x.txt'], '--pred-out ends in .csv or .json'),
        ('own/0.jpg', ['--cfg-options', 'model.backbone.archh=1'], 'archh'),
        ('own/0.jpg', 'none.pth', 'checkpoint none.pth '),
        ('own/0.jpg', 'code.pth', 'checkpoint code.pth '),
        ('own/0.jpg', 'other.pth', 'checkpoint other.pth '),
    ],
)
def test_input_that_cannot_be_used(task, capsys, image, args, words):
    for folder in ('empty', 'own'):
        os.mkdir(folder)
    for name in ('0.png', '0.jpg'):
        shutil.copy(f'{IMAGES}/0.jpg', f'own/{name}')
    Path('none.png').touch()
    noise('own/noise.png', 64, 64)
    Path('short.png').write_bytes(Path('own/noise.png').read_bytes()[:30])
    torch.save({'state_dict': {}, 'x': Attack()}, 'code.pth')
    torch.save({'state_dict': {'vig.fc': torch.zeros(1)}, 'meta': {}}, 'other.pth')
    before = {path: path.read_bytes() for path in Path().rglob('*') if path.is_file()}
    with pytest.raises(SystemExit, match='2'):
        image_demo.main(
            [image, 'tiny.py', args] if isinstance(args, str) else [image, 'tiny.py', 'model.pth', *args]
        )
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith('error: ')
    assert words in err[-1]
    assert {path: path.read_bytes() for path in Path().rglob('*') if path.is_file()} == before
    assert not os.path.exists('made')
