"""Weights that come with the package: by name, with their metric, and never damaged."""

import json
import runpy

import pytest
import torch

from mmvisiongru.apis import get_model
from mmvisiongru.checkpoint import SCHEME, published, published_weights, read_checkpoint
from mmvisiongru.errors import InputError
from mmvisiongru.models import VisionGRU
from tests.harness import need_mmseg
from tests.harness.small_runs import TOOLS
from tools.dataset_converters import digits

NAME = 'visiongru-pico_digits'
CONFIG = 'visiongru-pico_1xb64_digits'


@pytest.mark.parametrize('name', published_weights())
def test_a_model_comes_by_name_with_weights_and_classes(name):
    if 'upernet' in name:
        need_mmseg()
    meta = read_checkpoint(SCHEME + name).meta
    model = get_model(name, pretrained=True)
    weights = model.state_dict()
    stored = read_checkpoint(name).state_dict
    assert all(torch.equal(weights[key], value.to(weights[key].dtype)) for key, value in stored.items())
    assert model.dataset_meta == meta['dataset_meta']
    assert {'name', 'config', 'metric', 'commit', 'terms', 'sha256'} <= meta.keys()


def test_a_backbone_starts_from_them_by_init_cfg():
    init = dict(type='Pretrained', checkpoint=SCHEME + NAME, prefix='backbone.')
    model = VisionGRU('pico', init_cfg=init)
    model.init_weights()
    stored = read_checkpoint(NAME).state_dict
    for key, value in model.state_dict().items():
        assert torch.equal(value, stored[f'backbone.{key}'].float()), key


def test_the_tool_reaches_the_metric_of_the_file(here):
    digits.write_classification(here / 'data/digits/classification')
    main = runpy.run_path(str(TOOLS / 'test.py'))['main']
    main([CONFIG, NAME, '--out', 'metrics.json', '--out-item', 'metrics', '--no-optimize'])
    metrics = json.loads((here / 'metrics.json').read_text())
    expected = read_checkpoint(NAME).meta['metric']
    assert {name: round(metrics[name], 2) for name in expected} == expected


@pytest.mark.parametrize('name', [f'{SCHEME}visiongru-pico_digit', 'visiongru-pico_digit'])
def test_a_wrong_name_is_answered_with_the_near_one(name):
    with pytest.raises(InputError, match=NAME):
        read_checkpoint(name)


def test_damaged_and_missing_weights_are_refused(tmp_path, monkeypatch):
    source = published_weights()[NAME]
    content = torch.load(source, weights_only=True)
    next(iter(content['state_dict'].values())).view(-1)[0] += 1
    torch.save(content, tmp_path / source.name)
    monkeypatch.setattr(published, 'published_weights', lambda: {NAME: tmp_path / source.name})
    with pytest.raises(InputError, match=source.stem[-8:]):
        read_checkpoint(NAME)
    monkeypatch.setattr(published, 'published_weights', dict)
    with pytest.raises(InputError, match=NAME):
        read_checkpoint(SCHEME + NAME)


def test_a_file_of_that_name_wins(here):
    torch.save({'weight': torch.ones(2)}, NAME)
    assert read_checkpoint(NAME).state_dict['weight'].tolist() == [1, 1]
    assert len(read_checkpoint(SCHEME + NAME).state_dict) > 1
