"""Metafiles and READMEs are filled from counts, and nothing else in them changes."""

from pathlib import Path

import pytest

from mirrorla_mm.analysis.flops import Complexity
from mirrorla_mm.analysis.metafiles import fill, models_of, tabulate, zoo

CONFIGS = Path(__file__).parents[2] / 'configs'
METAFILE = """\
Collections:
  - Name: A family
    Metadata:
      Architecture:
        - Linear Attention

Models:
  - Name: a-t_x
    In Collection: A family
    Config: configs/family/a-t_x.py
    Metadata:
      Parameters: 1
      Training Data: COCO
    Results:
      - Task: Object Detection
        Dataset: COCO
        Metrics: {}
  - Name: a-t-linear_x
    Config: configs/family/a-t-linear_x.py
    Metadata:
      Training Data: COCO
"""


@pytest.fixture
def metafile(tmp_path) -> Path:
    folder = tmp_path / 'configs' / 'family'
    folder.mkdir(parents=True)
    (folder / 'metafile.yml').write_text(METAFILE)
    return folder / 'metafile.yml'


def cost(config: Path) -> Complexity:
    assert config.parent.name == 'family'
    return Complexity(params=25_000_000, total=7 if 'linear' in config.name else 2_600_000_000)


def test_counts_are_written_once_and_the_rest_stays(metafile):
    text = fill(metafile, cost)
    metafile.write_text(text)
    first, second = (model['Metadata'] for model in models_of(metafile))
    assert first == {'Parameters': 25_000_000, 'FLOPs': 2_600_000_000, 'Training Data': 'COCO'}
    assert second['FLOPs'] == 7
    assert fill(metafile, cost) == text
    counts = ('Parameters', 'FLOPs')
    kept = [
        [s for s in t.splitlines() if not s.strip().startswith(counts)] for t in (text, METAFILE)
    ]
    assert kept[0] == kept[1]


def test_a_config_that_cannot_be_counted_keeps_its_numbers(metafile):
    assert fill(metafile, lambda config: None) == METAFILE


def test_the_first_table_of_the_readme_is_replaced(metafile, tmp_path):
    metafile.write_text(fill(metafile, cost))
    readme = tmp_path / 'README.md'
    readme.write_text('# A\n\n| old |\n| --- |\n| row |\n\ntext\n\n| other |\n| --- |\n')
    assert tabulate(readme, models_of(metafile)) == (
        '# A\n\n'
        '| config | params (M) | FLOPs (G) | linear layout | FLOPs (G) |\n'
        '| --- | --- | --- | --- | --- |\n'
        '| [a-t_x](a-t_x.py) | 25.0 | 2.6 | [config](a-t-linear_x.py) | 0.0 |\n'
        '\ntext\n\n| other |\n| --- |\n'
    )


@pytest.mark.parametrize('folder', sorted(p.parent.name for p in CONFIGS.glob('*/metafile.yml')))
def test_table_of_a_readme_is_that_of_its_metafile(folder):
    readme = CONFIGS / folder / 'README.md'
    expected = tabulate(readme, models_of(CONFIGS / folder / 'metafile.yml'))
    assert readme.read_text(encoding='utf-8') == expected, (
        'stale: run tools/analysis_tools/metafiles.py'
    )


def test_model_zoo_is_that_of_the_metafiles():
    page = (CONFIGS.parent / 'docs' / 'model_zoo.md').read_text(encoding='utf-8')
    assert page == zoo(CONFIGS.parent), 'stale: run tools/analysis_tools/metafiles.py'


def test_model_zoo_marks_the_papers_figures_as_such():
    lines = zoo(CONFIGS.parent).splitlines()
    (row,) = (line for line in lines if '[retinanet_mirrorla-t_fpn_1x_coco]' in line)
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    assert cells[1:] == ['Object Detection, COCO', '23.6', '252.9', 'AP b 46.1', 'not trained']
