"""A folder of images in, a folder of larger ones out."""

import json
import os
from pathlib import Path

import cv2
import pytest

from mirrorla_mm.engine.errors import UserError
from mirrorla_mm.restoration.inference import restore, restore_file
from mirrorla_mm.restoration.metrics import PSNR, SSIM
from mirrorla_mm.restoration.restorer import Restorer
from tests.test_restoration.toy import TOY, draw, write_benchmark


@pytest.fixture
def restorer():
    return Restorer(dict(TOY, type='mirrorla_mm.DCTLSA', upscale=2)).eval()


def test_tiles_overlap_as_they_do_by_default(restorer, tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), draw(70, 70))
    images = []
    for options in (dict(tile=64), dict(tile=64, overlap=32)):
        restore(restorer, tmp_path / 'a.png', tmp_path / 'out', **options)
        images.append(cv2.imread(str(tmp_path / 'out/a.png')))
    assert (images[0] == images[1]).all()


def test_figures_are_those_of_the_written_image(restorer, tmp_path):
    root = write_benchmark(tmp_path, [(40, 48)])
    (result,) = restore(restorer, root / 'LR_bicubic/X2', tmp_path / 'out', root / 'HR')
    files = tmp_path / 'out/0x2.png', root / 'HR/0.png'
    written, truth = (cv2.imread(str(file))[..., ::-1] for file in files)
    about = dict(scale=2, gt_path='')
    # To the last digit: what is rounded here would be wrong in the mean of a set.
    assert result['PSNR'] == pytest.approx(PSNR().measure(written, truth, about), abs=1e-9)
    assert result['SSIM'] == pytest.approx(SSIM().measure(written, truth, about), abs=1e-9)


def test_results_take_no_place_of_ground_truths(restorer, tmp_path):
    root = write_benchmark(tmp_path, [(40, 48)])
    before = (root / 'HR/0.png').read_bytes()
    with pytest.raises(UserError, match='take the place'):
        restore(restorer, root / 'LR_bicubic/X2', root / 'HR/.', root / 'HR')
    assert [(path.name, path.read_bytes()) for path in (root / 'HR').iterdir()] == [
        ('0.png', before)
    ]


@pytest.mark.parametrize('tile', [None, 32])
@pytest.mark.parametrize('self_ensemble', [False, True])
def test_progress_is_shown_within_an_image(restorer, tmp_path, tile, self_ensemble):
    cv2.imwrite(str(tmp_path / 'a.png'), draw(70, 40))
    shares = []
    options = dict(tile=tile, overlap=16, self_ensemble=self_ensemble)
    target = tmp_path / 'out.png'
    restore_file(restorer, tmp_path / 'a.png', target, None, options, shares.append)
    assert len(shares) == (1 if tile is None else 4 * 2) * (8 if self_ensemble else 1)
    assert sum(shares) == pytest.approx(1)
    assert not restorer.backbone._forward_hooks


def test_a_folder_that_cannot_be_made_ends_before_the_work(restorer, tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / 'a.png'), draw(12, 12))
    (tmp_path / 'out').write_text('a file')
    worked = []
    monkeypatch.setattr(restorer.backbone, 'forward', worked.append)
    with pytest.raises(OSError, match='out'):
        restore(restorer, tmp_path / 'a.png', tmp_path / 'out')
    assert not worked


def test_what_cannot_be_scored_is_enlarged_all_the_same(restorer, tmp_path):
    root = write_benchmark(tmp_path, [(40, 48), (40, 48), (14, 14), (40, 48)])
    cv2.imwrite(str(root / 'HR/0.png'), draw(80, 96))
    cv2.imwrite(str(root / 'HR/3.png'), draw(41, 49, 3))
    (root / 'HR/1.png').write_bytes(b'damaged')
    results = restore(restorer, root / 'LR_bicubic/X2', tmp_path / 'out', root / 'HR')
    assert all((tmp_path / f'out/{number}x2.png').exists() for number in range(4))
    of_another_size, damaged, tiny, with_a_row_more = results
    assert of_another_size['unscored'].endswith(
        '0.png has 96x80 pixels, and the image enlarged by 2 48x40.'
    )
    assert '1.png is no readable image' in damaged['unscored']
    assert 'unscored' in tiny and (tiny['width'], tiny['height']) == (14, 14)
    assert {'PSNR', 'SSIM'} <= with_a_row_more.keys()


def test_no_image_is_made_of_a_broken_model_s_numbers(restorer, tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), draw(12, 12))
    for parameter in restorer.parameters():
        parameter.data.fill_(float('nan'))
    result = restore(restorer, tmp_path / 'a.png', tmp_path / 'out')[0]
    assert 'a.png enlarged holds NaN or infinity' in result['error']
    assert not (tmp_path / 'out/a.png').exists()


def test_one_odd_file_does_not_stop_the_others(restorer, tmp_path):
    (tmp_path / 'in/b.png').mkdir(parents=True)
    for name in ('a.png', 'c.png'):
        cv2.imwrite(str(tmp_path / 'in' / name), draw(12, 12))
    (tmp_path / 'out/a.png').mkdir(parents=True)
    results = restore(restorer, tmp_path / 'in', tmp_path / 'out')
    assert [list(result)[1] for result in results] == ['error', 'width']
    assert 'Is a directory' in results[0]['error']
    assert json.loads((tmp_path / 'out/results.json').read_text()) == results


def test_an_interrupted_run_keeps_what_it_had(restorer, tmp_path):
    for name in 'ab':
        (tmp_path / 'in').mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f'in/{name}.png'), draw(12, 12))

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(restorer, tmp_path / 'in', tmp_path / 'out', tell=stop)
    assert len(json.loads((tmp_path / 'out/results.json').read_text())) == 1


def test_names_that_are_no_text_are_told_and_kept(restorer, tmp_path, capsys):
    name = os.fsdecode(b'b\xfcck')
    cv2.imwrite(str(tmp_path / 'plain.png'), draw(12, 12))
    (tmp_path / 'in').mkdir()
    (tmp_path / 'plain.png').rename(tmp_path / f'in/{name}.png')
    restore(restorer, tmp_path / 'in', tmp_path / 'out')
    assert Path(tmp_path / f'out/{name}.png').exists()
    assert r'b\udcfcck.png: width 24, height 24' in capsys.readouterr().out
    assert json.loads((tmp_path / 'out/results.json').read_text())[0]['image'] == f'{name}.png'
