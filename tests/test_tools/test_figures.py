"""The drawn figures of the documents, and tools that refuse in one sentence."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from mirrorla_mm.analysis.compare import Cost, Facts, MapFacts
from mirrorla_mm.analysis.provenance import machine
from mirrorla_mm.backbones.ravlt import ARCHS
from mirrorla_mm.registry import ATTENTIONS
from tests.conftest import REPOSITORY

CONFIG = REPOSITORY / 'configs/studies/ravlt-study_efficientvit-head_1xb8-200_camvid-96x96.py'


def test_architecture_is_drawn_from_the_package_s_own_table(run, tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHS, 't', dict(ARCHS['t'], depths=(2, 2, 77, 2)))
    texts = []
    monkeypatch.setattr(
        'matplotlib.axes.Axes.text', lambda self, x, y, text, **_: texts.append(text)
    )
    run('analysis_tools/draw_architecture', '--out', 'drawn.png')
    assert Image.open(tmp_path / 'drawn.png').width > 1000
    assert 'T: 256 channels, 77 blocks' in texts


def test_curves_of_a_detector_and_a_segmentor_stand_side_by_side(run, tmp_path):
    for name, score in (('a', '"coco/bbox_mAP": 0.3'), ('b', '"mIoU": 20.0')):
        folder = tmp_path / name / '1' / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text(
            f'{{"loss": 2.0, "iter": 5, "step": 5}}\n{{{score}, "step": 1}}\n'
        )
    run('analysis_tools/plot_curves', 'a', 'b', '--out', 'both.png')
    run('analysis_tools/plot_curves', 'a', '--out', 'one.png')
    assert Image.open('both.png').width > 1.4 * Image.open('one.png').width


def test_runs_in_folders_of_one_name_are_told_apart(run, monkeypatch):
    for parent in 'ab':
        folder = Path(parent, 'detector', '1', 'vis_data')
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text('{"loss": 2, "step": 5}\n{"mIoU": 20, "step": 5}\n')
    drawn = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *_, **__: drawn.append(figure))
    run('analysis_tools/plot_curves', 'a/detector', 'b/detector')
    labels = [line.get_label() for line in drawn[0].axes[0].lines]
    assert labels == ['a/detector', 'b/detector']


def test_an_interrupted_drawing_leaves_the_earlier_one(run, monkeypatch):
    def interrupted(self, file, **_):
        Path(file).write_bytes(b'half')
        raise KeyboardInterrupt

    folder = Path('a', '1', 'vis_data')
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('{"loss": 2, "step": 5}\n{"mIoU": 20, "step": 5}\n')
    Path('curves.png').write_bytes(b'earlier')
    monkeypatch.setattr(Figure, 'savefig', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run('analysis_tools/plot_curves', 'a')
    assert Path('curves.png').read_bytes() == b'earlier'


def test_attentions_are_compared_with_their_machine_and_each_line_has_a_look_of_its_own(
    run, capsys, monkeypatch
):
    cost, drawn = Cost(1.0, 2**20), []
    facts = Facts('', 0, 0, 0, cost, cost, MapFacts(1, 1, 0, 0))
    module = 'mirrorla_mm.analysis.compare'
    monkeypatch.setattr(f'{module}.compare', lambda *_: facts)
    monkeypatch.setattr(
        'mirrorla_mm.analysis.benchmark.in_fresh_process', lambda *_: [(cost, cost)] * 2
    )
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *_, **__: drawn.append(figure))
    run('analysis_tools/compare_attention', '--device', 'cpu', '--sides', 4, 8, '--out', 'a.png')
    said = capsys.readouterr()
    assert f'{machine()}\n`python ' in said.out
    assert 'in the host' in said.err and 'alone' in said.err
    assert len(drawn) == len(ATTENTIONS)  # after each method, so that a stopped run leaves some
    lines = drawn[-1].axes[0].lines
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(ATTENTIONS)
    assert len({line.get_marker() for line in lines}) > 14


def test_study_shorter_than_its_warm_up_is_refused(run, capsys):
    with pytest.raises(SystemExit):
        run('studies/compare', '--config', CONFIG, '--iters', '4')
    assert '--iters 4 ends within the warm-up of 20 iterations' in capsys.readouterr().err


def test_study_keeps_its_folder_to_its_settings(run, capsys):
    command = ('studies/compare', '--config', CONFIG, '--work-dir', 'work', '--iters')
    for more, message in (
        (['4', '--data-root', 'one/ade'], 'warm-up'),
        (['5', '--data-root', 'one/ade/.'], 'other settings (iters 4, not 5)'),
        (['4', '--data-root', 'two/ade'], 'other settings (data'),
    ):
        with pytest.raises(SystemExit):
            run(*command, *more)
        assert message in capsys.readouterr().err
        Path('work/relu/seed-0').mkdir(parents=True, exist_ok=True)
