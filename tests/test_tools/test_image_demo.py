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

from mmvisiongru.models.layers import mingru
from mmvisiongru.ops import mingru_scan_2d
from tests.harness.small_runs import CLASSIFICATION, SEGMENTATION, make_scenes, write_config
from tools.visualization import image_demo

COLOURS = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]
TASKS = dict(
    segmentation=(SEGMENTATION, ('wall', 'building', 'sky')), classification=(CLASSIFICATION, ('a', 'b'))
)


@pytest.fixture(params=list(TASKS))
def task(request, tmp_path, monkeypatch):
    """A config with a trained model's checkpoint, and a folder of images."""
    monkeypatch.chdir(tmp_path)
    make_scenes(tmp_path / 'ade')
    text, classes = TASKS[request.param]
    cfg = Config.fromfile(write_config(tmp_path / 'tiny.py', text, tmp_path / 'ade'))
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    meta = dict(dataset_meta=dict(classes=classes, palette=COLOURS))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), 'model.pth')
    return request.param, model.eval(), classes


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
    image_demo.main(['ade/images/validation', 'tiny.py', 'model.pth', '--device', 'cpu', '--opacity', '1'])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('ade/')]
    assert [line.split(': ')[0] for line in lines] == [f'ade/images/validation/{i}.jpg' for i in range(3)]
    for i, line in enumerate(lines):
        found = predict(model, f'ade/images/validation/{i}.jpg', task)
        if task == 'classification':
            best = sorted(zip(found.tolist(), classes, strict=True), reverse=True)
            expected = ', '.join(f'{name} {score:.1%}' for score, name in best)
            assert line.endswith(f': {expected} (seen at 32 x 32)')
        else:
            share, best = max((float((found == k).float().mean()), name) for k, name in enumerate(classes))
            assert line.split(': ')[1].startswith(f'{best} {share:.1%}')
            assert line.endswith(' (seen at 32 x 32)')
        picture = f'work_dirs/demo/{i}.{"png" if task == "classification" else "jpg"}'
        assert min(Image.open(picture).size) >= 32


def test_weights_of_bfloat16_say_much_the_same(task, monkeypatch):
    found, dtypes = {}, []

    def scan(x, **kwargs):
        dtypes.append(x.dtype)
        return mingru_scan_2d(x, **kwargs)

    monkeypatch.setattr(mingru, 'mingru_scan_2d', scan)
    for dtype in ('float32', 'bfloat16'):
        args = ['ade/images/validation', 'tiny.py', 'model.pth', '--device', 'cpu', '--dtype', dtype]
        image_demo.main([*args, '--pred-out', f'{dtype}.json'])
        found[dtype] = json.loads(Path(f'{dtype}.json').read_text())
    differences = [
        abs(value - found['float32'][path]['scores'][name])
        for path, row in found['bfloat16'].items()
        for name, value in row['scores'].items()
    ]
    assert max(differences) < 0.1
    half = len(dtypes) // 2
    assert dtypes == half * [torch.float32] + half * [torch.bfloat16]


def test_classes_of_one_name_stay_apart():
    """ImageNet has two cranes."""
    assert image_demo.distinct(['crane', 'gull', 'crane']) == ['crane (0)', 'gull', 'crane (2)']


@pytest.mark.parametrize('kind', ['csv', 'json'])
def test_folders_inside_and_a_table(task, kind, capsys):
    """Images of equal names in several folders: no picture may overwrite another."""
    _, _, classes = task
    for name in ('a/0.jpg', 'a/b/0.jpg', 'a/b/1.2.jpg', 'a/b/1.3.jpg'):
        os.makedirs(os.path.dirname(f'own/{name}'), exist_ok=True)
        shutil.copy(f'ade/images/validation/{len(name) % 3}.jpg', f'own/{name}')
    table = f'tables/found.{kind}'
    image_demo.main(['own', 'tiny.py', 'model.pth', '--device', 'cpu', '--pred-out', table])
    assert f'4 pictures in work_dirs/demo, {table}' in capsys.readouterr().out
    pictures = [os.path.join(f, n) for f, _, names in os.walk('work_dirs/demo') for n in names]
    assert {os.path.splitext(p)[0][len('work_dirs/demo/') :] for p in pictures} == {
        'a/0',
        'a/b/0',
        'a/b/1.2',
        'a/b/1.3',
    }
    if kind == 'json':
        rows = json.loads(Path(table).read_text())
        scores = {image: list(row['scores'].values()) for image, row in rows.items()}
        assert all(list(row['scores']) == list(classes) for row in rows.values())
    else:
        head, *rows = csv.reader(Path(table).read_text().splitlines())
        assert head == ['image', 'height', 'width', *classes]
        scores = {image: list(map(float, values)) for image, _, _, *values in rows}
    assert sorted(scores) == ['own/a/0.jpg', 'own/a/b/0.jpg', 'own/a/b/1.2.jpg', 'own/a/b/1.3.jpg']
    assert all(sum(values) == pytest.approx(1, abs=1e-5) for values in scores.values())


@pytest.mark.parametrize('task', ['segmentation'], indirect=True)
def test_classes_are_those_of_the_config(task, capsys):
    """Converted checkpoints name none, and mmseg takes the 19 of Cityscapes then."""
    torch.save(dict(state_dict=task[1].state_dict(), meta={}), 'model.pth')
    test_pictures_and_lines(task, capsys)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['none.jpg', 'tiny.py', 'model.pth'], 'image none.jpg does not exist'),
        (['tiny.py', 'tiny.py', 'model.pth'], 'tiny.py is not an image that can be read'),
        (['none.png', 'tiny.py', 'model.pth'], 'none.png is not an image that can be read'),
        (['empty', 'tiny.py', 'model.pth'], 'no image (.png, .jpg, .jpeg'),
        (
            ['ade/images/validation', 'tiny.py', 'model.pth', '--out-dir', 'ade/../ade/images/validation'],
            '--out-dir ade/../ade/images/validation holds the images themselves',
        ),
        (['twice', 'tiny.py', 'model.pth'], 'two images are named 0; '),
        (['twice/0.jpg', 'tiny.py', 'model.pth', '--pred-out', 'x.txt'], '--pred-out ends in .csv or .json'),
        (['ade/images/validation/0.jpg', 'tiny.py', 'none.pth'], 'checkpoint none.pth does not exist'),
        (['ade/images/validation/0.jpg', 'tiny.py', 'code.pth'], 'checkpoint code.pth asks for posix.mkdir'),
        (['ade/images/validation/0.jpg', 'tiny.py', 'other.pth'], 'checkpoint other.pth matches no key'),
    ],
)
def test_input_that_cannot_be_used(task, capsys, args, message):
    os.mkdir('empty')
    open('none.png', 'w').close()
    os.mkdir('twice')
    for name in ('0.png', '0.jpg'):
        shutil.copy('ade/images/validation/0.jpg', f'twice/{name}')
    torch.save({'state_dict': {}, 'x': Attack()}, 'code.pth')
    torch.save({'state_dict': {'vig.fc': torch.zeros(1)}, 'meta': {}}, 'other.pth')
    with pytest.raises(SystemExit, match='2'):
        image_demo.main([*args, '--device', 'cpu'])
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith('error: ' + message)
    assert not os.path.exists('made')


class Attack:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ('made',)
