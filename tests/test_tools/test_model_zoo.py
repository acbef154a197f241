"""Every config is listed; figures are those of the counter, of the evidence and of the papers."""

import pytest
import yaml
from modelindex.load_model_index import load

from mmvisiongru.flops import count
from mmvisiongru.zoo import build_model
from tools.misc import update_model_zoo as zoo

# arXiv:2412.18178 and arXiv:2403.02308
PAPER = {
    'visiongru-tiny_8xb128_in1k': 82.0,
    'visiongru-tiny_8xb128_in1k_released': 82.0,
    'visiongru-base_8xb128_in1k': 83.1,
    'visiongru-base_8xb128_in1k_released': 83.1,
    'visiongru-tiny_upernet_8xb2-160k_ade20k-512x512': 44.7,
    'vrwkv-tiny_8xb128_in1k': 75.1,
    'vrwkv-small_8xb128_in1k': 80.1,
    'vrwkv-base_8xb128_in1k': 82.0,
    'vrwkv-tiny-adapter_upernet_8xb2-160k_ade20k-512x512': 43.3,
    'vrwkv-small-adapter_upernet_8xb2-160k_ade20k-512x512': 47.2,
}


def index():
    for part in yaml.safe_load((zoo.ROOT / 'model-index.yml').read_text())['Import']:
        yield yaml.safe_load((zoo.ROOT / part).read_text())


def entries():
    return {entry['Name']: entry for part in index() for entry in part['Models']}


def test_openmmlab_reads_the_index_and_finds_what_it_names():
    models = load(str(zoo.ROOT / 'model-index.yml'))
    models.build_models_with_collections()
    assert {model.name for model in models.models} == {*entries()}


@pytest.mark.parametrize('folder', zoo.FOLDERS)
def test_metafile_and_readme_are_up_to_date(folder):
    """If this fails: python tools/misc/update_model_zoo.py."""
    for path, text in zoo.update(folder).items():
        assert path.read_text() == text


def test_figures_of_one_entry_are_those_of_the_counter():
    entry = entries()['visiongru-tiny_8xb128_in1k']
    found = count(build_model(str(zoo.ROOT / entry['Config']), device='meta'), (224, 224))
    metadata = entry['Metadata']
    assert (metadata['FLOPs'], metadata['Parameters']) == (found['macs'], found['parameters'])
    assert metadata['Image Size'] == '224x224'


def test_quoted_results_are_those_of_the_papers():
    quoted = {
        name: value
        for name, entry in entries().items()
        for result in entry.get('Results', [])
        for metric, value in result['Metrics'].items()
        if metric.endswith('(paper)')
    }
    assert quoted == PAPER


def evidence(folder, name, options, values):
    folder.mkdir(parents=True)
    (folder / 'configs.csv').write_text(f'config,fingerprint,options\n{name},x,{options}\n')
    rows = [f'{name},{seed},{value}' for seed, value in enumerate(values)]
    (folder / 'results.csv').write_text('\n'.join(['config,seed,value', *rows, 'other,0,1.0', '']))


def test_figures_trained_here_are_means_of_the_evidence(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, 'ROOT', tmp_path)
    monkeypatch.setattr(zoo, 'counted', lambda config: {'FLOPs': 1})
    # With a smaller budget, which is another experiment.
    evidence(tmp_path / 'experiments/evidence/a', 'x', 'train_cfg.max_iters=3', [1.0])
    evidence(tmp_path / 'experiments/evidence/b', 'x', '', [40.0, 41.0])
    results = [{'Metrics': {'mIoU': 12.0}}, {'Metrics': {'mIoU (paper)': 44.7}}]
    (entry,) = zoo.update_entries(
        [{'Name': 'x', 'Config': 'x.py', 'Results': results}], ['x.py'], [{'Name': 'c', 'Code': {'URL': 'x'}}]
    )
    assert [result['Metrics'] for result in entry['Results']] == [{'mIoU': 40.5}, {'mIoU (paper)': 44.7}]
