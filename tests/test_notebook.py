"""docs/tutorial.ipynb runs from the first cell to the last, and what it says is so."""

import json

import matplotlib.pyplot as plt

from tests.harness import ROOT


def test_tutorial(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plt.switch_backend('agg')
    cells = json.loads((ROOT / 'docs/tutorial.ipynb').read_text(encoding='utf-8'))['cells']
    values = {}
    for i, cell in enumerate(cells):
        if cell['cell_type'] == 'code':
            exec(compile(''.join(cell['source']), f'tutorial.ipynb, cell {i}', 'exec'), values)
    plt.close('all')
    assert values['accuracy'] > 0.9
    assert values['runner'].iter == 20
    # Of even and odd digits, half are right by chance.
    assert values['metrics']['accuracy/top1'] > 75
    assert values['difference'] < 1e-5
