"""Pictures, folders and videos in; annotated pictures and JSON out.

Thin over mmdet's ``DetInferencer`` and mmseg's ``MMSegInferencer``, which know neither videos nor,
for segmentation, JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.infer import BaseInferencer
from rich.progress import track

PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm')


def build_inferencer(
    config: str | os.PathLike | Config,
    checkpoint: str | os.PathLike,
    device: str | None = None,
) -> BaseInferencer:
    """mmdet's or mmseg's own inferencer for a config, without their progress bars.

    Args:
        config (str | os.PathLike | Config): Config of a detector or segmentor.
        checkpoint (str | os.PathLike): Its weights, and the names of its classes.
        device (str, optional): Such as ``'cuda:0'``. Defaults to a GPU where there is one.

    Returns:
        BaseInferencer: Takes pictures as BGR arrays or paths.

    Raises:
        ValueError: If the config is neither a detector's nor a segmentor's.
    """
    cfg = config if isinstance(config, Config) else Config.fromfile(config)
    if cfg.get('default_scope') == 'mmdet':
        from mmdet.apis import DetInferencer

        return DetInferencer(cfg, str(checkpoint), device, show_progress=False)
    if cfg.get('default_scope') == 'mmseg':
        from mmseg.apis import MMSegInferencer

        inferencer = MMSegInferencer(cfg, weights=str(checkpoint), device=device)
        inferencer.show_progress = False
        return inferencer
    raise ValueError(
        'A config for inference needs default_scope mmdet or mmseg, got '
        f'{cfg.get("default_scope")!r}.'
    )


def predict(
    inferencer: BaseInferencer,
    source: str | os.PathLike,
    out_dir: str | os.PathLike,
    score_thr: float = 0.3,
) -> list[dict]:
    """Predict all pictures of a source, one after the other, and write what was found.

    ``out_dir`` gets each annotated picture, or the annotated video, and ``predictions.json``: for
    each picture its name and boxes (with labels, scores and masks), or for segmentation the share
    of each class that is there.

    Args:
        inferencer (BaseInferencer): From :func:`build_inferencer`.
        source (str | os.PathLike): A picture, a folder of pictures or a video.
        out_dir (str | os.PathLike): Made where missing.
        score_thr (float): Boxes below this score are neither drawn nor written.

    Returns:
        list[dict]: What the JSON file holds.

    Raises:
        FileNotFoundError: If the source does not exist or is a folder without pictures.
        ValueError: If it is neither a picture nor a video, or cannot be read as one.
    """
    source, out_dir = Path(source), Path(out_dir)
    _check_source(source)
    out_dir.mkdir(parents=True, exist_ok=True)
    video = _VideoWriter(source, out_dir) if _is_video(source) else None
    results = []
    for name, picture in track(_pictures(source), 'Predicting', total=_count(source)):
        options = dict(pred_score_thr=score_thr) if _is_detector(inferencer) else {}
        found = inferencer(picture, return_vis=True, **options)
        results.append(dict(picture=name, **_summary(inferencer, found, score_thr)))
        drawn = _first(found['visualization'])[..., ::-1]
        if video:
            video.write(drawn)
        else:
            mmcv.imwrite(drawn, str(out_dir / f'{Path(name).stem}.png'))
    if video:
        video.release()
    (out_dir / 'predictions.json').write_text(json.dumps(results, indent=1), encoding='utf-8')
    return results


def _is_detector(inferencer: BaseInferencer) -> bool:
    return inferencer.cfg.default_scope == 'mmdet'


def _summary(inferencer: BaseInferencer, found: dict, score_thr: float) -> dict:
    prediction = _first(found['predictions'])
    names = inferencer.model.dataset_meta['classes']
    if not _is_detector(inferencer):
        labels, pixels = np.unique(prediction, return_counts=True)
        shares = {names[label]: float(n / prediction.size) for label, n in zip(labels, pixels)}
        return dict(shares=shares)
    kept = [i for i, score in enumerate(prediction['scores']) if score >= score_thr]
    result = {key: [values[i] for i in kept] for key, values in prediction.items()}
    result['names'] = [names[label] for label in result['labels']]
    return result


def _first(item: Any) -> Any:
    # mmseg gives a bare array for one picture, mmdet a list of one.
    return item[0] if isinstance(item, list) else item


def _is_video(source: Path) -> bool:
    return source.suffix.lower() in VIDEOS


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES


def _check_source(source: Path) -> None:
    if not source.exists():
        raise FileNotFoundError(f'{source} does not exist.')
    if source.is_dir():
        if not any(map(_is_picture, source.iterdir())):
            raise FileNotFoundError(f'The folder {source} holds no {", ".join(PICTURES)}.')
    elif not (_is_picture(source) or _is_video(source)):
        raise ValueError(f'{source} is neither a picture nor a video, by its suffix.')
    elif _is_video(source) and mmcv.VideoReader(str(source)).frame_cnt <= 0:
        raise ValueError(f'{source} cannot be read as a video.')


def _files(source: Path) -> list[Path]:
    return sorted(filter(_is_picture, source.iterdir())) if source.is_dir() else [source]


def _count(source: Path) -> int:
    return mmcv.VideoReader(str(source)).frame_cnt if _is_video(source) else len(_files(source))


def _pictures(source: Path) -> Iterator[tuple[str, np.ndarray]]:
    if _is_video(source):
        for i, frame in enumerate(mmcv.VideoReader(str(source))):
            yield f'{source.stem}_{i:06d}', frame
        return
    for path in _files(source):
        picture = mmcv.imread(str(path))
        if picture is None:
            raise ValueError(f'{path} cannot be read as a picture.')
        yield path.name, picture


class _VideoWriter:
    """Writes frames at the rate of another video, in a codec that OpenCV brings along."""

    def __init__(self, source: Path, out_dir: Path) -> None:
        self._file = str(out_dir / f'{source.stem}.mp4')
        self._fps = mmcv.VideoReader(str(source)).fps or 25
        self._writer = None

    def write(self, frame: np.ndarray) -> None:
        import cv2

        if self._writer is None:
            codec = cv2.VideoWriter_fourcc(*'mp4v')
            self._writer = cv2.VideoWriter(self._file, codec, self._fps, frame.shape[1::-1])
        self._writer.write(np.ascontiguousarray(frame))

    def release(self) -> None:
        if self._writer is not None:
            self._writer.release()
