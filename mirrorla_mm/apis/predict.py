"""Images, folders and videos in; drawn images, label maps and JSON out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import mmcv
import numpy as np
from PIL import Image

from ..engine.atomic import whole_file
from ..engine.data import DataError
from ..engine.errors import printable
from ..engine.images import IMAGES, read_image
from .inference import Inferencer, Prediction

PREDICTIONS = 'predictions.json'
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm')


def predict(
    model: Inferencer,
    source: str | os.PathLike,
    out_dir: str | os.PathLike,
    score_thr: float = 0.3,
    tell: Callable[[str], None] | None = None,
) -> list[dict]:
    """Predict a source and write what was found.

    Below ``out_dir`` go ``drawn/`` with each image under its own name and folder, or the video as
    MP4; of a segmentor ``labels/`` with each image's label map, a PNG of class indices, under the
    image's name with ``.png`` after it; and ``predictions.json``, a list with an entry an image:
    ``image``, ``width`` and ``height`` with ``names``, ``labels``, ``scores``, ``bboxes`` and
    ``masks`` of a detector or ``shares`` of a segmentor, or ``error`` for a file that could not be
    read or its outputs not be written. The list is written also where an error or the user stops
    the run.

    Args:
        model (Inferencer): The model.
        source (str | os.PathLike): An image, a folder of images with all below it, or a video.
        out_dir (str | os.PathLike): Made where missing.
        score_thr (float): Instances below this score are neither drawn nor written.
        tell (Callable, optional): Takes a line an image as it is done, of a video one a second.

    Returns:
        list[dict]: What the JSON file holds.

    Raises:
        DataError: If the source does not exist, holds no images, is neither an image nor a video
            or is a video that cannot be read; or if the output would or might replace an input.
    """
    source, out_dir = Path(source), Path(out_dir)
    tell = tell or (lambda line: None)
    files = _files(source, out_dir)
    results: list[dict] = []
    if not (out_dir / PREDICTIONS).is_file():
        # By it a next run knows that the images are outputs, even if this one is killed.
        _write_predictions(out_dir, results)
    predicted = (
        _predict_video(model, source, out_dir, score_thr, tell)
        if _is_video(source)
        else _predict_images(model, files, out_dir, score_thr, tell)
    )
    try:
        for result in predicted:
            results.append(result)
    finally:
        _write_predictions(out_dir, results)
    return results


def _predict_images(
    model: Inferencer, files: dict[str, Path], out_dir: Path, score_thr: float, tell: Callable
) -> Iterator[dict]:
    digits = len(str(len(files)))
    for i, (name, path) in enumerate(files.items(), 1):
        start = time.perf_counter()
        try:
            image = read_image(path)
            found = model(image).above(score_thr)
            _write_image(found.draw(image), out_dir / 'drawn' / name)
            if found.label_map is not None:
                _write_labels(found, out_dir / 'labels' / f'{name}.png')
            result, said = found.to_dict(), found.summary()
        except (DataError, OSError) as error:
            # Sizes that a config cannot process are told of an array, which has no name.
            said = str(error).replace('The image', str(path), 1)
            result = dict(error=said)
        line = f'{name}: {said} ({time.perf_counter() - start:.2f} s)'
        tell(printable(f'[{i:{digits}d}/{len(files)}] {line}'))
        yield dict(image=name, **result)


def _predict_video(
    model: Inferencer, source: Path, out_dir: Path, score_thr: float, tell: Callable
) -> Iterator[dict]:
    video = mmcv.VideoReader(str(source))
    rate = video.fps or 25
    target = out_dir / 'drawn' / _video_name(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    size = (video.width, video.height)
    writer = cv2.VideoWriter(str(target), cv2.VideoWriter_fourcc(*'mp4v'), rate, size)
    if not writer.isOpened():
        raise DataError(f'{target} cannot be written as a video of {size[0]} x {size[1]} pixels.')
    try:
        done = 0
        for frame in video:  # It ends where a frame cannot be read.
            found = model(frame).above(score_thr)
            writer.write(found.draw(frame))
            if done % max(round(rate), 1) == 0:
                tell(f'[{done + 1}/{video.frame_cnt}] {source.name}: {found.summary()}')
            yield dict(image=f'{source.stem}_{done:06d}', **found.to_dict())
            done += 1
        if done < video.frame_cnt:
            error = (
                f'{source} is damaged or cut short: it ends at frame {done} of {video.frame_cnt}.'
            )
            tell(error)
            yield dict(image=f'{source.stem}_{done:06d}', error=error)
    finally:
        writer.release()


def _files(source: Path, out_dir: Path) -> dict[str, Path]:
    """The images of a source, or its video, by the names of their outputs."""
    if not source.exists():
        raise DataError(f'{source} does not exist.')
    if _is_video(source):
        if mmcv.VideoReader(str(source)).frame_cnt <= 0:
            raise DataError(f'{source} cannot be read as a video.')
        files = {_video_name(source): source}
    elif source.is_dir():
        found = sorted(path for path in source.rglob('*') if _is_image(path))
        # Outputs of an earlier run, where they lie within the source.
        ours = [_real(out_dir / folder) for folder in ('drawn', 'labels')]
        below = [p for p in found if not any(_real(p).is_relative_to(o) for o in ours)]
        if len(below) < len(found) and not (out_dir / PREDICTIONS).is_file():
            raise DataError(
                f'{out_dir} has images in drawn or labels, and no {PREDICTIONS} that tells that '
                'they are outputs: name another folder.'
            )
        if not below:
            raise DataError(f'The folder {source} holds no {", ".join(IMAGES)}.')
        files = {path.relative_to(source).as_posix(): path for path in below}
    elif _is_image(source):
        files = {source.name: source}
    else:
        raise DataError(
            f'{source} is neither an image ({", ".join(IMAGES)}) nor a video ({", ".join(VIDEOS)}).'
        )
    if any(_real(out_dir / 'drawn' / name) == _real(path) for name, path in files.items()):
        raise DataError(f'{out_dir} would replace the images of {source}: name another folder.')
    return files


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES and not os.path.isdir(path)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises on a link to itself.


def _video_name(source: Path) -> str:
    return f'{source.stem}.mp4'


def _is_video(source: Path) -> bool:
    return source.is_file() and source.suffix.lower() in VIDEOS


def _write_predictions(out_dir: Path, results: list[dict]) -> None:
    text = json.dumps(results, indent=1, ensure_ascii=False)
    with whole_file(out_dir / PREDICTIONS) as partial:
        # Names that are no UTF-8 become escapes of JSON.
        partial.write_text(text, 'utf-8', errors='backslashreplace')


def _write_image(image: np.ndarray, path: Path) -> None:
    encoded, content = cv2.imencode(path.suffix, image)
    if not encoded:
        raise DataError(f'{path} cannot be written.')
    with whole_file(path, sync=False) as partial:
        partial.write_bytes(content.tobytes())


def _write_labels(found: Prediction, path: Path) -> None:
    with whole_file(path, sync=False) as partial:
        Image.fromarray(found.label_map).save(partial, format='PNG')
