"""Figures of matplotlib as files, with letters of any script that an installed font has."""

import csv
import warnings
from collections.abc import Iterable

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.text import Text

from mmvisiongru.files import new_file
from tools.deployment.painting import find_font
from tools.outputs import SOFTWARE


def save_figure(figure: Figure, rows: Iterable[Iterable], out: str) -> str:
    """Write a figure as OUT.png (200 dpi) and OUT.pdf, its table as OUT.csv; give the names.

    InputError if one cannot be written, as on a full disk.
    """
    texts = figure.findobj(Text)
    fontManager.addfont(font := find_font(text.get_text() for text in texts))
    families = ['DejaVu Sans', FontProperties(fname=font).get_name()]
    for text in texts:
        text.set_fontfamily(families)
    with warnings.catch_warnings():
        # What is missing has been said in one line.
        warnings.filterwarnings('ignore', 'Glyph .* missing')
        with new_file(f'{out}.png') as unfinished:
            figure.savefig(unfinished, format='png', dpi=200, metadata=dict(Software=SOFTWARE))
        with new_file(f'{out}.pdf') as unfinished:
            figure.savefig(unfinished, format='pdf')
    with new_file(f'{out}.csv') as unfinished, open(unfinished, 'w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows(rows)
    return ', '.join(f'{out}.{suffix}' for suffix in ('png', 'pdf', 'csv'))
