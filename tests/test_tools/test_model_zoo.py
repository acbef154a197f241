"""Every config is listed; figures are those of the counter and of the evidence."""

import pytest
from modelindex.load_model_index import load

from tests.harness.config_builders import NEEDS_MMDET
from tools.misc import update_model_zoo as zoo


def test_openmmlab_reads_the_index_and_finds_every_config():
    models = load(str(zoo.ROOT / 'model-index.yml'))
    models.build_models_with_collections()
    configs = [path for path in (zoo.ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts]
    assert {model.name for model in models.models} == {path.stem for path in configs}


@pytest.mark.parametrize(
    'folder', [pytest.param(f, marks=NEEDS_MMDET if f == 'detection' else ()) for f in zoo.FOLDERS]
)
def test_metafile_and_readme_are_up_to_date(folder):
    """If this fails: python tools/misc/update_model_zoo.py."""
    for path, text in zoo.update(folder).items():
        assert path.read_text() == text


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
    results = [{'Metrics': {'mIoU': 12.0, 'mask AP': 3}}, {'Metrics': {'mIoU (paper)': 44.7}}]
    (entry,) = zoo.update_entries([{'Name': 'x', 'Config': 'x.py', 'Results': results}], ['x.py'], [])
    assert [r['Metrics'] for r in entry['Results']] == [{'mIoU': 40.5, 'mask AP': 3}, {'mIoU (paper)': 44.7}]
