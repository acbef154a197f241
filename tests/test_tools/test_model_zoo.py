"""Every config is listed, paths exist, and listed figures are what the counter and the paper say."""

from pathlib import Path

import pytest
import yaml
from modelindex.load_model_index import load

from mmvisiongru.flops import count
from mmvisiongru.zoo import build_model
from tools.misc import update_model_zoo as zoo

CONFIGS = zoo.ROOT / 'configs'
# arXiv:2412.18178 and arXiv:2403.02308
PAPER = {
    'configs/classification/visiongru-tiny_8xb128_in1k.py': 82.0,
    'configs/classification/visiongru-tiny_8xb128_in1k_released.py': 82.0,
    'configs/classification/visiongru-base_8xb128_in1k.py': 83.1,
    'configs/classification/visiongru-base_8xb128_in1k_released.py': 83.1,
    'configs/segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py': 44.7,
    'configs/classification/vrwkv-tiny_8xb128_in1k.py': 75.1,
    'configs/classification/vrwkv-small_8xb128_in1k.py': 80.1,
    'configs/classification/vrwkv-base_8xb128_in1k.py': 82.0,
    'configs/segmentation/vrwkv-tiny-adapter_upernet_8xb2-160k_ade20k-512x512.py': 43.3,
    'configs/segmentation/vrwkv-small-adapter_upernet_8xb2-160k_ade20k-512x512.py': 47.2,
}


def index():
    for part in yaml.safe_load((zoo.ROOT / 'model-index.yml').read_text())['Import']:
        yield yaml.safe_load((zoo.ROOT / part).read_text())


def entries():
    return [entry for part in index() for entry in part['Models']]


def test_every_config_is_listed_once():
    configs = [path for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts]
    assert sorted(e['Config'] for e in entries()) == sorted(str(p.relative_to(zoo.ROOT)) for p in configs)
    assert all(Path(entry['Config']).stem == entry['Name'] for entry in entries())


def test_openmmlab_reads_the_index_and_finds_what_it_names():
    models = load(str(zoo.ROOT / 'model-index.yml'))
    models.build_models_with_collections()
    assert len(models.models) == len(entries())
    for part in index():
        for collection in part['Collections']:
            assert (zoo.ROOT / collection['README']).is_file()
            assert (zoo.ROOT / collection['Code']['URL']).is_file()
        for entry in part['Models']:
            is_vrwkv = entry['Name'].startswith('vrwkv') and 'peers/' not in entry['Config']
            assert entry['In Collection'].endswith('Vision-RWKV') is is_vrwkv
        assert {entry['In Collection'] for entry in part['Models']} == {
            c['Name'] for c in part['Collections']
        }


@pytest.mark.parametrize('folder', zoo.FOLDERS)
def test_metafile_and_readme_are_up_to_date(folder):
    """If this fails: python tools/misc/update_model_zoo.py."""
    for path, text in zoo.update(folder).items():
        assert path.read_text() == text


def test_figures_of_one_entry_are_what_the_counter_says():
    (entry,) = (e for e in entries() if e['Name'] == 'visiongru-tiny_8xb128_in1k')
    found = count(build_model(str(zoo.ROOT / entry['Config']), device='meta'), (224, 224))
    assert entry['Metadata']['Image Size'] == '224x224'
    assert (entry['Metadata']['FLOPs'], entry['Metadata']['Parameters']) == (
        found['macs'],
        found['parameters'],
    )
    assert f'| {found["parameters"] / 1e6:.2f} | {found["macs"] / 1e9:.2f} |' in zoo.table([entry])


def test_accuracy_of_the_paper_is_marked_as_such():
    quoted = {}
    for entry in entries():
        for result in entry.get('Results', []):
            for name, value in result['Metrics'].items():
                if name.endswith('(paper)'):
                    quoted[entry['Config']] = value
    assert quoted == PAPER


def test_new_config_gets_an_entry_and_results_are_kept():
    old, new = list(PAPER)[:2]
    result = [{'Task': 'Image Classification', 'Metrics': {'Top 1 Accuracy': 81.9}}]
    known = {
        'Name': 'x',
        'In Collection': 'c',
        'Config': old,
        'Results': result,
        'Metadata': {'Epochs': 300, 'FLOPs': 1},
    }
    collections = [{'Name': name, 'Code': {'URL': f'x/{name}.py'}} for name in ('visiongru', 'vrwkv')]
    first, second, third = zoo.update_entries([known], [old, new, list(PAPER)[5]], collections)
    assert [entry['In Collection'] for entry in (first, second, third)] == ['c', 'visiongru', 'vrwkv']
    assert first['Results'] == result
    assert first['Metadata']['Epochs'] == 300
    assert first['Metadata']['FLOPs'] == second['Metadata']['FLOPs'] > 1
    assert second['Name'] == Path(new).stem
    assert '81.9 top-1 |' in zoo.table([first])
    assert 'not trained here |' in zoo.table([second])
