"""Figures are written whole, in the format that their name says."""

import pytest
from matplotlib.figure import Figure

from mirrorla_mm.engine.figures import save_figure


@pytest.mark.parametrize(
    'name, start', [('a/new/f.png', b'\x89PNG'), ('f.pdf', b'%PDF'), ('f', b'\x89PNG')]
)
def test_the_name_says_the_format(tmp_path, name, start):
    save_figure(Figure(), tmp_path / name, dpi=20)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_a_figure_that_cannot_be_drawn_leaves_the_earlier_one(tmp_path, monkeypatch):
    def broken(self, file, **_):
        file.write_bytes(b'half')
        raise RuntimeError('interrupted')

    monkeypatch.setattr(Figure, 'savefig', broken)
    (tmp_path / 'f.png').write_bytes(b'earlier')
    with pytest.raises(RuntimeError, match='interrupted'):
        save_figure(Figure(), tmp_path / 'f.png', dpi=20)
    assert (tmp_path / 'f.png').read_bytes() == b'earlier'
    assert [file.name for file in tmp_path.iterdir()] == ['f.png']
