"""The package in a program of one's own: the snippets of docs/python.md, names of configs, bad input."""

import re
import shutil

import pytest
import torch

from mmvisiongru import config
from mmvisiongru.apis import get_config, get_model, list_configs
from mmvisiongru.errors import InputError
from tests.harness import ROOT

SNIPPETS = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/python.md').read_text(), re.DOTALL)
PICO = 'visiongru-pico_1xb64_digits'


def test_the_page_has_snippets():
    assert len(SNIPPETS) == 5


@pytest.mark.parametrize('snippet', SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet_runs_and_says_the_right_sizes(snippet):
    values = {}
    exec(compile(snippet, 'docs/python.md', 'exec'), values)
    if 'maps' in values:
        assert [tuple(m.shape[2:]) for m in values['maps']] == [(30, 40), (15, 20), (8, 10), (4, 5)]
    for name in ('h', 'features'):
        if name in values:
            stated = re.search(rf'\b{name}[,)]* = .*# (\(.*?\))', snippet)[1]
            assert str(tuple(values[name].shape)) == stated
    if 'cfg' in values and 'names' in values:
        assert values['cfg'].train_cfg.max_epochs == 100
        assert 'visiongru-tiny_8xb128_in1k' in values['names']
    if 'result' in values:
        assert {'pred_label', 'pred_score', 'pred_scores'} <= set(values['result'])


def test_names_are_those_of_the_files():
    names = list_configs()
    files = [path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts]
    assert names == sorted(path.stem for path in files)
    assert len(set(names)) == len(files)
    assert list_configs('*_upernet_*ade20k*') == [n for n in names if '_upernet_' in n and 'ade20k' in n]


def test_an_installed_package_has_its_own_configs(monkeypatch, tmp_path):
    package = tmp_path / 'site-packages' / 'mmvisiongru'
    monkeypatch.setattr(config, 'PACKAGE', package)
    with pytest.raises(InputError, match='install mmvisiongru again'):
        list_configs()
    shutil.copytree(ROOT / 'configs', package / '.mim' / 'configs')
    assert str(get_config(PICO).filename).startswith(str(tmp_path))
    assert get_config(PICO).model.backbone.arch == 'pico'


def test_a_model_of_16_bits_takes_images_of_float32():
    torch.manual_seed(0)
    model, x = get_model('mmvisiongru.VisionGRU:pico'), torch.randn(1, 3, 40, 32)
    half = get_model('mmvisiongru.VisionGRU:pico', dtype=torch.bfloat16)
    half.load_state_dict(model.state_dict())
    with torch.no_grad():
        for a, b in zip(model(x), half(x), strict=True):
            assert b.dtype == torch.bfloat16
            assert (a - b.float()).square().mean().sqrt() < 0.02 * a.square().mean().sqrt()


def test_weights_are_loaded(tmp_path):
    model = get_model(PICO)
    assert not model.training
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'x.pth')
    x = torch.rand(1, 3, 64, 64)
    again = get_model(PICO, str(tmp_path / 'x.pth'))
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: get_config('visiongru-tiny_8xb128_in1'), "did you mean 'visiongru-tiny_8xb128_in1k'?"),
        (lambda: get_config('alexnet'), 'list_configs() lists them'),
        (lambda: get_config('nowhere.py'), 'nowhere.py does not exist'),
        (lambda: get_config(PICO, dict(modle=1)), "did you mean 'model'?"),
        (lambda: get_model('visiongru-huge'), 'near: visiongru-'),
        (lambda: get_model(PICO, 'nowhere.pth'), 'checkpoint nowhere.pth does not exist'),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        call()
    assert '\n' not in str(error.value)
