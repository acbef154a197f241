"""image_demo.py: the predictions of both tasks on images without labels, and input that cannot be used."""

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


@pytest.fixture(params=list(TASKS))
def task(request, workplace):
    """A config with a trained model's checkpoint, and folders of images."""
    text, data, classes = TASKS[request.param]
    meta = dict(classes=classes, palette=COLOURS)
    extra = f"launcher = 'none'\ntest_dataloader['dataset']['metainfo'] = {meta}\n"
    cfg = Config.fromfile(write_config(workplace / 'tiny.py', text, data, extra))
    return request.param, make_weights(cfg, meta), classes


def make_weights(cfg, meta):
    """Write model.pth; give the model."""
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=meta)), 'model.pth')
    return model.eval()


def demo(*args):
    image_demo.main([*args[:1], 'tiny.py', 'model.pth', '--device', 'cpu', *args[1:]])


def predict(model, path, task):
    """Classes by the model alone: of the pixels, or of the image."""
    image = torch.from_numpy(np.array(Image.open(path))[..., ::-1].copy()).permute(2, 0, 1)
    with torch.no_grad():
        x = (image.float()[None] - 127) / 60
        if task == 'classification':
            return model(x).softmax(1)[0]
        return model.decode_head.predict(model.extract_feat(x), [dict(img_shape=(32, 32))], {})[0].argmax(0)


def test_pictures_and_lines(task, capsys):
    task, model, classes = task
    demo(IMAGES, '--opacity', '1')
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('ade/')]
    assert [line.split(': ')[0] for line in lines] == [f'{IMAGES}/{i}.jpg' for i in range(3)]
    for i, line in enumerate(lines):
        found = predict(model, f'{IMAGES}/{i}.jpg', task)
        picture = np.asarray(Image.open(f'work_dirs/demo/{i}.png'))
        assert line.endswith(' (seen at 32 x 32)')
        if task == 'classification':
            best = sorted(zip(found.tolist(), classes, strict=True), reverse=True)
            assert f': {", ".join(f"{name} {score:.1%}" for score, name in best)} (' in line
            assert (picture[-256:, :256] == enlarge(np.asarray(Image.open(f'{IMAGES}/{i}.jpg')))).all()
        else:
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
GREY = dict(
    segmentation="""
model['backbone']['in_channels'] = 1
model['data_preprocessor'].update(mean=[120.0], std=[50.0], bgr_to_rgb=False)
pipeline[0].update(color_type='grayscale')
""",
    classification="""
model['backbone']['in_channels'] = 1
data_preprocessor.update(mean=[120.0], std=[50.0], to_rgb=False)
pipeline[0].update(color_type='grayscale')
""",
)


def reconfigure(task, text):
    """Append to the config, and write weights that fit."""
    text = text[task[0]] if isinstance(text, dict) else text
    Path('tiny.py').write_text(Path('tiny.py').read_text() + text)
    cfg = Config.fromfile('tiny.py')
    return make_weights(cfg, dict(classes=task[2], palette=COLOURS))


@pytest.fixture
def inputs(monkeypatch):
    """What backbones got."""
    seen, forward = [], VisionGRU.forward
    monkeypatch.setattr(VisionGRU, 'forward', lambda self, x: (seen.append(x.detach()), forward(self, x))[1])
    return seen


@pytest.mark.parametrize('text', [RESIZED, GREY], ids=['resized, RGB', 'grey'])
def test_every_tool_gives_the_model_what_a_test_gives_it(task, text, inputs):
    """The tensors are equal to the last bit, whatever the sizes of the images."""
    random = np.random.default_rng(0)
    images = sorted(Path('ade/images/validation' if task[0] == 'segmentation' else 'inet/val').rglob('*.*'))
    for image, size in zip(images, [(90, 70), (50, 81), (33, 64)], strict=False):
        Image.fromarray(random.integers(0, 256, (*size, 3)).astype('uint8')).save(image)
        if task[0] == 'segmentation':
            Image.new('L', size[::-1], 1).save(
                str(image).replace('images', 'annotations').replace('jpg', 'png')
            )
    reconfigure(task, text)
    test_tool.main(
        ['tiny.py', 'model.pth', '--work-dir', 'work', '--cfg-options', 'test_dataloader.batch_size=1']
    )
    # Those before are of checks.
    expected = inputs[-len(images) :]
    assert len({x.shape for x in expected}) > (1 if text is GREY or task[0] == 'segmentation' else 0)
    for tool in (image_demo, gate_memory, receptive_field):
        inputs.clear()
        for image in images:
            if tool is image_demo:
                demo(str(image))
            else:
                tool.main(['tiny.py', 'model.pth', '--img', str(image), '--out', 'insight/x'])
        assert len(inputs) == len(expected)
        assert all(torch.equal(x, y) for x, y in zip(inputs, expected, strict=True)), tool.__name__


def test_insight_takes_images_of_one_size_or_a_shape(task, inputs, capsys):
    reconfigure(task, RESIZED)
    os.mkdir('own')
    for i, size in enumerate([(90, 70), (50, 120)]):
        Image.new('RGB', size[::-1], (200, 30, 10)).save(f'own/{i}.png')
    args = ['tiny.py', 'model.pth', '--img', 'own', '--out', 'insight/x']
    if task[0] == 'segmentation':
        with pytest.raises(SystemExit, match='2'):
            receptive_field.main(args)
        assert '--shape' in capsys.readouterr().err
        inputs.clear()
    receptive_field.main([*args, '--shape', '48', '64'])
    height = 48
    for x in inputs:
        assert x.shape[2:] == (height, 64)
        # Red comes first.
        torch.testing.assert_close(x[0, :, 5, 5], torch.tensor([80 / 60, -80 / 50, -90 / 40]))
    assert '64 x 48' in capsys.readouterr().out


TTA = """
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


@pytest.mark.parametrize('task', ['segmentation'], indirect=True)
def test_augmented_views_are_merged_as_in_a_test(task):
    with open('tiny.py', 'a') as file:
        file.write(TTA)
    test_tool.main(['tiny.py', 'model.pth', '--work-dir', 'work', '--out', 'maps'])
    demo(IMAGES, '--pred-out', 'found.json')
    for image, row in json.loads(Path('found.json').read_text()).items():
        labels = np.asarray(Image.open(f'maps/{Path(image).stem}.png')) - 1
        assert list(row['scores'].values()) == pytest.approx([(labels == k).mean() for k in range(3)])


@pytest.mark.parametrize('task', ['segmentation'], indirect=True)
@pytest.mark.parametrize('most', [1, 7 * 8000])
def test_shares_are_those_of_the_test(task, most, monkeypatch):
    """Padded, resized and labelled without logits of all classes at full size."""
    monkeypatch.setattr(image_demo, 'MOST_LOGITS', most)
    reconfigure(task, RESIZED)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype('uint8')).save(
        f'{IMAGES}/0.jpg'
    )
    Image.new('L', (90, 70), 1).save('ade/annotations/validation/0.png')
    test_tool.main(['tiny.py', 'model.pth', '--work-dir', 'work', '--out', 'maps'])
    demo(IMAGES, '--pred-out', 'found.json')
    for image, row in json.loads(Path('found.json').read_text()).items():
        labels = np.asarray(Image.open(f'maps/{Path(image).stem}.png')) - 1
        assert list(row['scores'].values()) == pytest.approx([(labels == k).mean() for k in range(3)])


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


@pytest.mark.parametrize('task', ['segmentation'], indirect=True)
def test_one_output_channel(task, capsys):
    """The second class is where the score is above the threshold."""
    task = ('segmentation', None, ('back', 'front'))
    config = """
model['decode_head'].update(num_classes=2, out_channels=1, threshold={})
model['decode_head']['loss_decode'] = dict(type='CrossEntropyLoss', use_sigmoid=True)
test_dataloader['dataset'].update(type='BaseSegDataset', metainfo=dict(classes=('back', 'front')))
"""
    model = reconfigure(task, config.format(0.3))
    Image.fromarray(np.arange(128 * 160 * 3).reshape(128, 160, 3).astype('uint8') ** 2).save('own.png')
    image = torch.from_numpy(np.array(Image.open('own.png'))[..., ::-1].copy()).permute(2, 0, 1)
    with torch.no_grad():
        features = model.extract_feat((image.float()[None] - 127) / 60)
        score = model.decode_head.predict(features, [dict(img_shape=(128, 160))], {})[0, 0].sigmoid()
    threshold = float(score.quantile(0.7))
    reconfigure(task, config.format(threshold))
    demo('own.png', '--pred-out', 'found.json')
    (row,) = json.loads(Path('found.json').read_text()).values()
    assert row['scores'] == pytest.approx(dict(back=0.7, front=0.3), abs=0.01)


def test_weights_of_bfloat16_say_much_the_same(task, inputs):
    found = {}
    for dtype in ('float32', 'bfloat16'):
        demo(IMAGES, '--dtype', dtype, '--pred-out', f'{dtype}.json')
        found[dtype] = json.loads(Path(f'{dtype}.json').read_text())
    differences = [
        abs(value - found['float32'][path]['scores'][name])
        for path, row in found['bfloat16'].items()
        for name, value in row['scores'].items()
    ]
    assert max(differences) < 0.1
    # Images lose no digits before they meet the model, whose weights are converted.
    assert [x.dtype for x in inputs] == 6 * [torch.float32]
    assert all(torch.equal(x, y) for x, y in zip(inputs[:3], inputs[3:], strict=True))
    assert task[0] == 'segmentation' or max(differences) > 0


def test_classes_of_one_name_stay_apart():
    """ImageNet has two cranes."""
    assert image_demo.distinct(['crane', 'gull', 'crane']) == ['crane (0)', 'gull', 'crane (2)']


@pytest.mark.parametrize('kind', ['csv', 'json'])
def test_folders_inside_and_a_table(task, kind, capsys):
    """Images of equal names in several folders, and names that no 8-bit locale has."""
    _, _, classes = task
    names = ('a/0.jpg', 'a/b/0.jpg', 'a/b/1.2.jpg', 'a/ä ß/日本.jpg')
    for name in names:
        os.makedirs(os.path.dirname(f'own/{name}'), exist_ok=True)
        shutil.copy(f'{IMAGES}/{len(name) % 3}.jpg', f'own/{name}')
    table = f'tables/found.{kind}'
    demo('own', '--pred-out', table)
    assert f'4 pictures in work_dirs/demo, {table}' in capsys.readouterr().out
    pictures = [str(path.relative_to('work_dirs/demo')) for path in Path('work_dirs/demo').rglob('*.png')]
    assert sorted(pictures) == sorted(name.replace('.jpg', '.png') for name in names)
    text = Path(table).read_text(encoding='utf-8')
    if kind == 'json':
        rows = json.loads(text)
        scores = {image: list(row['scores'].values()) for image, row in rows.items()}
        assert all(list(row['scores']) == list(classes) for row in rows.values())
    else:
        head, *rows = csv.reader(text.splitlines())
        assert head == ['image', 'height', 'width', *classes]
        scores = {image: list(map(float, values)) for image, _, _, *values in rows}
    assert sorted(scores) == sorted(f'own/{name}' for name in names)
    assert all(sum(values) == pytest.approx(1, abs=1e-5) for values in scores.values())


@pytest.mark.parametrize('task', ['segmentation'], indirect=True)
def test_classes_are_those_of_the_config(task, capsys):
    """Converted checkpoints name none."""
    torch.save(dict(state_dict=task[1].state_dict(), meta={}), 'model.pth')
    test_pictures_and_lines(task, capsys)


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


@pytest.mark.parametrize(
    ('args', 'words'),
    [
        (['none.jpg'], 'image none.jpg does not exist'),
        (['tiny.py'], 'tiny.py is not an image'),
        (['none.png'], 'none.png is not an image'),
        (['short.png'], 'short.png cannot be prepared'),
        (['empty'], 'no image (.png, .jpg, .jpeg'),
        ([IMAGES, '--out-dir', 'ade/../ade/images/validation/new'], 'is among the data'),
        (['own', '--out-dir', 'own/pictures'], 'is among the data'),
        (['own/0.jpg', '--out-dir', 'own'], 'own/0.png exists'),
        (['own/0.jpg', '--pred-out', 'x.txt'], '--pred-out ends in .csv or .json'),
        (['own/0.jpg', '--cfg-options', 'model.backbone.archh=1'], 'archh'),
    ],
)
def test_input_that_cannot_be_used(task, capsys, args, words):
    for folder in ('empty', 'own'):
        os.mkdir(folder)
    for name in ('0.png', '0.jpg'):
        shutil.copy(f'{IMAGES}/0.jpg', f'own/{name}')
    Path('none.png').touch()
    Image.effect_noise((64, 64), 50).save('own/noise.png')
    Path('short.png').write_bytes(Path('own/noise.png').read_bytes()[:30])
    before = sorted(Path().rglob('*'))
    with pytest.raises(SystemExit, match='2'):
        demo(*args)
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith('error: ')
    assert words in err[-1]
    assert [path for path in before if not path.exists()] == []
    assert Path('own/0.png').read_bytes() == Path(f'{IMAGES}/0.jpg').read_bytes()


@pytest.mark.parametrize('name', ['none.pth', 'code.pth', 'other.pth'])
def test_checkpoint_that_cannot_be_used(task, capsys, name):
    torch.save({'state_dict': {}, 'x': Attack()}, 'code.pth')
    torch.save({'state_dict': {'vig.fc': torch.zeros(1)}, 'meta': {}}, 'other.pth')
    with pytest.raises(SystemExit, match='2'):
        image_demo.main([f'{IMAGES}/0.jpg', 'tiny.py', name])
    assert f'error: checkpoint {name} ' in capsys.readouterr().err
    assert not os.path.exists('made')


class Attack:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ('made',)
