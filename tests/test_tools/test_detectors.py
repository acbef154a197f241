"""A small detector through the scripts, from training to mistakes in one line."""

import csv
import json

import mmcv
import mmengine
import numpy as np
import pytest
import torch
from mmengine.runner import Runner

from mmvisiongru.apis import get_config
from mmvisiongru.errors import InputError
from mmvisiongru.launch.prepare import prepare_training
from mmvisiongru.zoo import build_model, model_config
from tests.harness.config_builders import NEEDS_MMDET
from tools import test, train
from tools.analysis_tools import confusion_matrix as matrix
from tools.analysis_tools.flops import count
from tools.deployment import export
from tools.misc import verify_dataset
from tools.visualization import browse_dataset, image_demo

pytestmark = NEEDS_MMDET
CONFIG = 'mask-rcnn_visiongru-pico_fpn_1xb4-24e_coco128'
CLASSES = ('square', 'bar')


def coco(folder, split, number):
    """Bright squares and bars on noise, one or two an image; one image has none."""
    rng, images, annotations = np.random.default_rng(len(split)), [], []
    for i in range(number):
        image = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8)
        for label in range(i % 3):
            w, h = (16, 16) if label == 0 else (30, 8)
            x, y = int(rng.integers(1, 64 - w)), int(rng.integers(1, 48 - h))
            image[y : y + h, x : x + w] = 255 - 120 * label
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            box = dict(bbox=[x, y, w, h], area=w * h, segmentation=[corners], iscrowd=0)
            annotations.append(dict(box, id=len(annotations) + 1, image_id=i, category_id=7 - label))
        mmcv.imwrite(image, str(folder / split / f'{i}.png'))
        images.append(dict(id=i, file_name=f'{i}.png', width=64, height=48))
    names = [dict(id=7 - i, name=name) for i, name in enumerate(CLASSES)]
    content = dict(images=images, annotations=annotations, categories=names)
    (folder / f'{split}.json').write_text(json.dumps(content))


def options():
    found = {'work_dir': 'run'} | {f'{split}_evaluator.ann_file': 'toy/val.json' for split in ('val', 'test')}
    for split in ('train', 'val', 'test'):
        name, place = ('train' if split == 'train' else 'val'), f'{split}_dataloader'
        found |= {f'{place}.num_workers': 0, f'{place}.persistent_workers': False}
        dataset = dict(data_root='toy', ann_file=f'{name}.json', data_prefix=dict(img=name))
        found |= {f'{place}.dataset.{key}': value for key, value in dataset.items()}
        found[f'{place}.dataset.metainfo'] = dict(classes=CLASSES)
        # As large as they are.
        found[f'{place}.dataset.pipeline.{2 if split == "train" else 1}.scale'] = (64, 48)
    schedule = {'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 2, 'param_scheduler': None}
    return found | schedule | {'default_hooks.checkpoint.interval': 1}


# All that it finds, however badly.
MASKS = {f'model.roi_head.{part}_head.num_classes': 2 for part in ('bbox', 'mask')}
MASKS['model.test_cfg.rcnn.score_thr'] = 0.0


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The folder of a run of two epochs, its config and its log."""
    folder = tmp_path_factory.mktemp('detection')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Runner, '_log_env', lambda *_: None)
        for split, number in (('train', 9), ('val', 4)):
            coco(folder / 'toy', split, number)
        cfg = get_config(CONFIG, options() | MASKS)
        cfg.dump('toy.py')
        prepare_training(cfg).train()
    return folder


@pytest.fixture(autouse=True)
def _inside(run, monkeypatch):
    monkeypatch.chdir(run)
    monkeypatch.setattr(Runner, '_log_env', lambda *_: None)


def test_training_resumes_exactly(run):
    prepare_training(get_config('toy.py', {'work_dir': 'other', 'train_cfg.max_epochs': 1})).train()
    train.main(['toy.py', '--resume', 'other/epoch_1.pth', '--work-dir', 'other'])
    found, expected = (torch.load(f'{name}/epoch_2.pth')['state_dict'] for name in ('other', 'run'))
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


NARROW = {'drop_path_rate': 0.0, 'arch': 'pico'}
RETINA = {'neck.in_channels': [48, 96, 192], 'neck.out_channels': 64, 'test_cfg.score_thr': 0.0}
RETINA |= {f'bbox_head.{key}': 64 for key in ('in_channels', 'feat_channels')}
RETINA |= {'bbox_head.num_classes': 2, 'bbox_head.stacked_convs': 1}


@pytest.mark.parametrize(
    ('config', 'changes', 'metrics'),
    [
        ('retinanet_visiongru-tiny_fpn_8xb2-1x_coco', RETINA, ['bbox']),
        ('mask-rcnn_vrwkv-tiny-adapter_fpn_8xb2-1x_coco', {'neck.in_channels': [96] * 4}, ['bbox', 'segm']),
    ],
)
def test_other_detectors_learn_and_are_tested(run, config, changes, metrics):
    changes = {f'model.{key}': value for key, value in changes.items()}
    if 'mask' in config:
        # The heads of the narrow one.
        narrow = get_config(CONFIG, MASKS).model
        changes = {f'model.{key}': narrow[key] for key in ('neck', 'rpn_head', 'roi_head')} | changes
    changes |= {f'model.backbone.{key}': value for key, value in NARROW.items()}
    # Twice as large: as the smallest anchors.
    changes |= {'train_dataloader.dataset.pipeline.2.scale': (128, 96), 'train_cfg.max_epochs': 1}
    get_config(config, options() | changes).dump('other.py')
    train.main(['other.py', '--work-dir', config])
    states = torch.load(f'{config}/epoch_1.pth')['optimizer']['state']
    assert {int(state['step']) for state in states.values()} == {3}
    # Every parameter had a gradient, the adapter's query norms after the second step.
    assert all(state['exp_avg'].isfinite().all() and state['exp_avg'].any() for state in states.values())
    test.main(['other.py', f'{config}/epoch_1.pth', '--work-dir', f'{config}/test'])
    (found,) = (json.loads(path.read_text()) for path in (run / config / 'test').glob('*/*.json'))
    assert [f'coco/{name}_mAP' in found for name in ('bbox', 'segm')] == [True, 'segm' in metrics]


def test_test_draws_and_dumps_predictions(run):
    options = '--show-dir drawn --out found.pkl --work-dir tested'
    test.main(['toy.py', 'run/epoch_2.pth', *options.split()])
    assert len(list((run / 'drawn').glob('*.png'))) == 4
    # Truth and prediction side by side, below their names.
    height, width, _ = mmcv.imread('drawn/1.png').shape
    assert (height > 48, width >= 2 * 64) == (True, True)
    found = mmengine.load('found.pkl')
    assert [len(sample['pred_instances']['masks']) for sample in found] == [100] * 4
    (metrics,) = (json.loads(path.read_text()) for path in (run / 'tested').glob('*/*.json'))
    assert metrics.keys() >= {'coco/bbox_mAP', 'coco/segm_mAP'}


def test_demo_writes_boxes_and_masks():
    for table in ('boxes.csv', 'boxes.json'):
        image_demo.main(['toy/val', 'toy.py', 'run/epoch_2.pth', '--out-dir', 'demo', '--pred-out', table])
    with open('boxes.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    found = mmengine.load('boxes.json')
    assert len(rows) == sum(len(each['instances']) for each in found.values()) == 400
    assert {row['class'] for row in rows} <= {*CLASSES}
    first = found['toy/val/0.png']['instances'][0]
    assert rows[0]['score'] == f'{first["score"]:.6f}'
    assert first['mask']['size'] == [48, 64]


def test_browse_draws_boxes_where_the_objects_are(run):
    # Twice as large as the boxes of the file, which are scaled with it.
    scale = 'train_dataloader.dataset.pipeline.2.scale=(128,96)'
    browse_dataset.main(['toy.py', '--out', 'browsed', '--number', '1', '--cfg-options', scale])
    (path,) = (run / 'browsed').glob('*.png')
    assert mmcv.imread(str(path)).shape[1] >= 102


def test_verify_names_boxes_outside_and_images_without(capsys):
    content = mmengine.load('toy/val.json')
    content['annotations'][0]['bbox'][2] = 90
    content['images'][2]['height'] = 47
    mmengine.dump(content, 'toy/bad.json')
    place = 'val_dataloader.dataset.ann_file'
    arguments = ['--cfg-options', f'{place}=bad.json', 'val_evaluator.ann_file=toy/bad.json']
    assert verify_dataset.main(['toy.py', '--dataloaders', 'val_dataloader', *arguments]) == 1
    out = capsys.readouterr().out
    assert '2 of 4 samples' in out
    assert [word in out for word in ('1.png: box (', '64 x 47', '2 images have no box: 0.png')] == [True] * 3


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'model.neck.in_channels': [24, 48, 96, 190]}, 'model.neck.in_channels=[24,48,96,192]'),
        ({'model.rpn_head.in_channels': 32}, 'model.rpn_head.in_channels=64'),
        ({'model.roi_head.mask_head.in_channels': 32}, 'model.roi_head.mask_head.in_channels=64'),
        ({'model.roi_head.bbox_roi_extractor.out_channels': 32}, 'bbox_roi_extractor.out_channels=64'),
        ({'model.roi_head.bbox_head.num_classes': 80}, 'model.roi_head.bbox_head.num_classes=2'),
        ({'train_dataloader.dataset.ann_file': 'none.json'}, 'none.json'),
        ({'optim_wrapper.type': 'AmpOptimWrapper'}, 'bfloat16'),
        ({'val_evaluator.ann_file': 'toy/train.json'}, 'val_evaluator.ann_file=toy/val.json'),
        ({'train_dataloader.dataset.metainfo.classes': ('square', 'disc')}, 'disc'),
        # mmdet numbers categories in the order of the file.
        (
            {f'{split}_dataloader.dataset.metainfo.classes': CLASSES[::-1] for split in ('train', 'val')},
            'metainfo.classes',
        ),
    ],
)
def test_mistakes_are_named_before_training(changes, named):
    with pytest.raises(InputError) as caught:
        prepare_training(get_config('toy.py', {'work_dir': 'mistake', **changes}))
    assert named in str(caught.value)
    assert '\n' not in str(caught.value)


REFUSED = [(test, '--tta'), (test, '--amp'), (export, 'x.onnx'), (matrix, '--out=x')]


@pytest.mark.parametrize(('tool', 'option'), REFUSED)
def test_what_is_not_for_detectors_is_refused(tool, option, refused):
    assert 'mmdet' in refused(tool, 'toy.py', 'run/epoch_2.pth', option)


def test_flops_of_mask_rcnn_with_swin_are_those_of_the_papers():
    """267 G at 1280 x 800, with 1000 proposals and 100 masks."""
    model = build_model(model_config('mask-rcnn_swin-tiny_fpn_8xb2-1x_coco')).to('meta')
    assert count(model, (800, 1280))['macs'] == pytest.approx(267e9, rel=5e-3)
