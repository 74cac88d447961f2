"""Folders and videos through a model, as a user of the command line gets them back."""

import errno
import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from mirrorla_mm.apis import predict
from mirrorla_mm.engine.data import DataError

from .conftest import DETECTOR, SEGMENTOR, save_weights, toy

TOOL = Path(__file__).parents[2] / 'tools' / 'inference.py'
RED = (255, 0, 0)


def write(path: Path, colour=RED, size=(80, 60)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, colour).save(path)
    return path


def clip(path: Path, colour=RED, frames=3) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 5, (80, 64))
    for _ in range(frames):
        writer.write(np.full((64, 80, 3), colour[::-1], np.uint8))
    writer.release()
    return path


def pixel(path: Path) -> tuple[int, ...]:
    return Image.open(path).convert('RGB').getpixel((40, 30))


def test_images_keep_their_colours(inferencer, tmp_path):
    write(tmp_path / 'in' / 'a.png')
    predict(inferencer(DETECTOR), tmp_path / 'in', tmp_path / 'out', score_thr=1.1)
    assert pixel(tmp_path / 'out' / 'drawn' / 'a.png') == RED


def test_videos_keep_their_colours_and_length(inferencer, tmp_path):
    source = clip(tmp_path / 'clip.avi')
    results = predict(inferencer(DETECTOR), source, tmp_path / 'out', score_thr=1.1)
    assert [r['image'] for r in results] == ['clip_000000', 'clip_000001', 'clip_000002']
    video = cv2.VideoCapture(str(tmp_path / 'out' / 'drawn' / 'clip.mp4'))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    frame = video.read()[1]
    assert frame.shape == (64, 80, 3)
    assert np.abs(frame[30, 40].astype(int) - RED[::-1]).max() < 30


@pytest.mark.parametrize('rate', [0.5, 5])
def test_a_video_that_ends_early_is_told_at_any_rate(inferencer, tmp_path, monkeypatch, rate):
    source, lines = clip(tmp_path / 'clip.avi'), []
    monkeypatch.setattr('mmcv.VideoReader.fps', rate)
    monkeypatch.setattr('mmcv.VideoReader.frame_cnt', 7)
    results = predict(inferencer(DETECTOR), source, tmp_path / 'out', 1.1, lines.append)
    assert lines[-1].endswith('clip.avi is damaged or cut short: it ends at frame 3 of 7.')
    assert results[3] == dict(image='clip_000003', error=lines[-1]) and len(results) == 4


def test_label_maps_are_saved_and_drawn_in_the_colours_of_their_classes(inferencer, tmp_path):
    model = inferencer(SEGMENTOR)
    write(tmp_path / 'a.png')
    predict(model, tmp_path / 'a.png', tmp_path / 'out')
    labels = np.array(Image.open(tmp_path / 'out' / 'labels' / 'a.png.png'))
    found = model(tmp_path / 'a.png')
    assert (labels == found.label_map).all()
    # In a corner, as names lie in the middle.
    drawn = np.array(Image.open(tmp_path / 'out' / 'drawn' / 'a.png'))
    for row, column in ((0, 0), (59, 79)):
        expected = (np.array(RED) + model.palette[labels[row, column]]) / 2
        assert np.abs(drawn[row, column] - expected).max() <= 1


def test_folders_are_mirrored_and_names_do_not_collide(inferencer, tmp_path):
    names = ['deep/er/a.png', 'same.jpg', 'same.png', 'UPPER.JPG']
    for name in names:
        write(tmp_path / 'in' / name)
    (tmp_path / 'in' / 'notes.txt').write_text('no image')
    results = predict(inferencer(SEGMENTOR), tmp_path / 'in', tmp_path / 'out')
    assert sorted(r['image'] for r in results) == sorted(names)
    assert json.loads((tmp_path / 'out' / 'predictions.json').read_text()) == results
    for name in names:
        assert (tmp_path / 'out' / 'drawn' / name).is_file()
        assert (tmp_path / 'out' / 'labels' / f'{name}.png').is_file()


def test_names_that_are_no_text_are_told_and_kept(inferencer, tmp_path):
    name = os.fsdecode(b'b\xfcck.png')
    (tmp_path / 'in').mkdir()
    write(tmp_path / 'plain.png').rename(tmp_path / 'in' / name)
    lines = []
    predict(inferencer(DETECTOR), tmp_path / 'in', tmp_path / 'out', tell=lines.append)
    assert lines[0].startswith(r'[1/1] b\udcfcck.png: ') and lines[0].isascii()
    found = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
    assert found[0]['image'] == name and (tmp_path / 'out' / 'drawn' / name).is_file()


def test_bad_file_is_told_and_the_others_are_done(inferencer, tmp_path):
    good = write(tmp_path / 'in' / 'b.jpg').read_bytes()
    (tmp_path / 'in' / 'a.jpg').touch()
    (tmp_path / 'in' / 'c.jpg').write_bytes(good[: len(good) // 2])
    (tmp_path / 'in' / 'd.png').write_text('no image')
    lines = []
    results = predict(inferencer(DETECTOR), tmp_path / 'in', tmp_path / 'out', tell=lines.append)
    errors = {r['image']: r['error'] for r in results if 'error' in r}
    assert errors.keys() == {'a.jpg', 'c.jpg', 'd.png'}
    assert errors['a.jpg'].endswith('a.jpg is empty (0 bytes).')
    assert 'c.jpg is cut short' in errors['c.jpg']
    assert 'd.png is no readable image' in errors['d.png']
    assert [line.split(':')[0] for line in lines] == [
        '[1/4] a.jpg',
        '[2/4] b.jpg',
        '[3/4] c.jpg',
        '[4/4] d.png',
    ]


def test_one_odd_file_does_not_stop_the_others(inferencer, tmp_path):
    source = tmp_path / 'in'
    for name in ('a.png', 'z.png'):
        write(source / name)
    long = write(source / f'{"b" * 249}.png').name  # its label map needs 257 bytes
    (source / 'c.jpg').mkdir()
    (source / 'd.png').symlink_to('d.png')
    results = predict(inferencer(SEGMENTOR), source, tmp_path / 'out')
    assert [r['image'] for r in results] == ['a.png', long, 'd.png', 'z.png']
    assert ['error' in r for r in results] == [False, True, True, False]
    assert results[2]['error'].endswith('d.png does not exist.')
    assert 'File name too long' in results[1]['error']


def test_a_full_disk_leaves_what_an_earlier_run_wrote(inferencer, tmp_path, monkeypatch):
    write(tmp_path / 'in' / 'a.png')
    predict(inferencer(SEGMENTOR), tmp_path / 'in', tmp_path / 'out')
    written = {p: p.read_bytes() for p in (tmp_path / 'out').rglob('*') if p.is_file()}
    assert len(written) == 3

    def full(*args) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, 'replace', full)
    with pytest.raises(OSError, match=r'predictions\.json cannot be written: No space left'):
        predict(inferencer(SEGMENTOR), tmp_path / 'in', tmp_path / 'out')
    assert {p: p.read_bytes() for p in (tmp_path / 'out').rglob('*') if p.is_file()} == written


def test_interrupted_run_keeps_what_it_had(inferencer, tmp_path):
    for name in 'abc':
        write(tmp_path / 'in' / f'{name}.png')

    def stop_at_the_second(line: str) -> None:
        if '2/3' in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(inferencer(DETECTOR), tmp_path / 'in', tmp_path / 'out', tell=stop_at_the_second)
    assert len(json.loads((tmp_path / 'out' / 'predictions.json').read_text())) == 1


def test_outputs_of_a_killed_run_are_known_as_such(inferencer, tmp_path):
    write(tmp_path / 'a.png')

    def kept(line: str) -> None:  # what there is when no more lines run
        shutil.copytree(tmp_path / 'out', tmp_path / 'killed')

    predict(inferencer(SEGMENTOR), tmp_path / 'a.png', tmp_path / 'out', tell=kept)
    shutil.rmtree(tmp_path / 'out')
    results = predict(inferencer(SEGMENTOR), tmp_path, tmp_path / 'killed')
    assert [r['image'] for r in results] == ['a.png']


def test_second_run_into_the_source_does_not_predict_the_first_ones_output(inferencer, tmp_path):
    write(tmp_path / 'a.png')
    for _ in range(2):
        results = predict(inferencer(SEGMENTOR), tmp_path, tmp_path / 'out')
        assert [r['image'] for r in results] == ['a.png']


@pytest.mark.parametrize('folder', ['drawn', 'labels'])
def test_photos_in_a_folder_that_is_named_like_ours_are_not_replaced(inferencer, tmp_path, folder):
    write(tmp_path / 'a.png')
    photo = write(tmp_path / folder / 'a.png', (0, 0, 255))
    with pytest.raises(DataError, match=r'has images in drawn or labels, and no predictions\.json'):
        predict(inferencer(SEGMENTOR), tmp_path, tmp_path)
    assert pixel(photo) == (0, 0, 255)


def test_inputs_are_never_replaced(inferencer, tmp_path):
    write(tmp_path / 'drawn' / 'a.png')
    with pytest.raises(DataError, match='would replace the images'):
        predict(inferencer(DETECTOR), tmp_path / 'drawn' / 'a.png', tmp_path)
    video = clip(tmp_path / 'drawn' / 'clip.avi').rename(tmp_path / 'drawn' / 'clip.mp4')
    before = video.read_bytes()
    with pytest.raises(DataError, match='would replace'):
        predict(inferencer(DETECTOR), video, tmp_path)
    assert video.read_bytes() == before


def test_decompression_bomb_is_refused_by_its_header(inferencer, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    write(tmp_path / 'bomb.png', size=(100, 100))
    (result,) = predict(inferencer(DETECTOR), tmp_path / 'bomb.png', tmp_path / 'out')
    assert 'has 0 million pixels, and no more than 0 are read' in result['error']


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('nowhere', 'does not exist'),
        ('empty', 'holds no .jpg'),
        ('x.txt', 'neither an image .* nor a video'),
        ('broken.mp4', 'cannot be read as a video'),
    ],
)
def test_bad_sources_are_one_sentence(inferencer, tmp_path, name, message):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'x.txt').write_text('text')
    (tmp_path / 'broken.mp4').write_bytes(b'no video')
    with pytest.raises(DataError, match=message):
        predict(inferencer(DETECTOR), tmp_path / name, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def run_tool(*args, monkeypatch) -> int:
    monkeypatch.setattr(sys, 'argv', ['inference.py', *map(str, args)])
    try:
        runpy.run_path(str(TOOL), run_name='__main__')
    except SystemExit as end:
        return end.code
    return 0


def test_command_line_writes_all_and_fails_where_a_file_failed(tmp_path, monkeypatch, capsys):
    cfg = toy(DETECTOR)
    cfg.dump(tmp_path / 'config.py')
    weights = save_weights(cfg, tmp_path / 'x.pth')
    write(tmp_path / 'in' / 'a.png')
    args = (tmp_path / 'config.py', weights, tmp_path / 'in', '--device', 'cpu')
    assert run_tool(*args, '--out-dir', tmp_path / 'out', monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert '[1/1] a.png:' in out and '1 images are in' in out
    (tmp_path / 'in' / 'b.png').touch()
    assert run_tool(*args, '--out-dir', tmp_path / 'out', monkeypatch=monkeypatch) == 1
    assert '1 could not be predicted: b.png' in capsys.readouterr().err
    torch.save(dict(state_dict={'a': torch.ones(1)}), weights)
    assert run_tool(*args, '--out-dir', tmp_path / 'new', monkeypatch=monkeypatch) == 1
    assert 'is of another model' in capsys.readouterr().err
    assert not (tmp_path / 'new').exists()
