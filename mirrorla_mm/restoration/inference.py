"""Folder in, folder out: a trained super-resolution model on image files."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import init_default_scope
from rich.progress import Progress

from ..backbones.deploy import deploy
from ..engine.atomic import whole_file
from ..engine.checkpoint import load_checkpoint_file
from ..engine.checkpoint_fit import check_fit
from ..engine.configs import read_config
from ..engine.data import DataError
from ..engine.devices import usable_device
from ..engine.errors import UserError, printable
from ..engine.finite import require_finite
from ..registry import MODELS
from .datasets import images_of
from .images import read_image, write_png
from .metrics import PSNR, SSIM, to_uint8
from .restorer import Restorer
from .tiling import OVERLAP, check_tiles, enlarge, number_of_passes
from .transforms import is_of_size

RESULTS = 'results.json'


def load_restorer(
    config: str | os.PathLike, checkpoint: str | os.PathLike, device: str | None = None
) -> Restorer:
    """Build the model of a config with its trained weights, folded for inference.

    Args:
        config (str | os.PathLike): Config of a super-resolution model.
        checkpoint (str | os.PathLike): Its weights.
        device (str, optional): Such as ``'cuda:0'``. Defaults to a GPU where there is one.

    Raises:
        CheckpointError: If the checkpoint cannot be read or is of another model.
        UserError: If the config is none of a super-resolution model.
    """
    cfg = read_config(config)
    if cfg.get('model', {}).get('type') != 'mirrorla_mm.Restorer':
        raise UserError(f'{config} is no config of a super-resolution model.')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    check_fit(model, load_checkpoint_file(checkpoint, map_location='cpu'), str(checkpoint))
    device = device or ('cuda:0' if torch.cuda.is_available() else 'cpu')
    return deploy(model).to(usable_device(device)).eval()


def restore(
    model: Restorer,
    source: str | os.PathLike,
    out_dir: str | os.PathLike,
    truth_dir: str | os.PathLike | None = None,
    tell: Callable[[str], None] = print,
    **options,
) -> list[dict]:
    """Enlarge an image or all images of a folder.

    ``out_dir`` gets a PNG of each, grey, transparent or of 16 bits as its source, and
    ``results.json``, also where an error or the user stops the run. An image that cannot be read,
    enlarged or written is reported and left out.

    Args:
        model (Restorer): From :func:`load_restorer`.
        source (str | os.PathLike): Image, or folder of images.
        out_dir (str | os.PathLike): Made where missing.
        truth_dir (str | os.PathLike, optional): Ground truths, named like the images or without
            the scale at the end (``baby.png`` for ``babyx4.png``); adds PSNR and SSIM.
        tell (Callable): Takes a line for each image.
        **options: Of :func:`~mirrorla_mm.restoration.tiling.enlarge`.

    Returns:
        list[dict]: For each image its name and size, and PSNR and SSIM where there is a ground
        truth, or ``unscored``, why there are none; for one that is left out ``error``.

    Raises:
        DataError: If there is nothing to enlarge, or an image has no ground truth.
        UserError: If the results would take the place of their sources or ground truths, or tiles
            have no sensible size.
    """
    source, out_dir = Path(source), Path(out_dir)
    files = image_files(source)
    require_other_folder(out_dir, [files[0].parent, *([Path(truth_dir)] if truth_dir else [])])
    if options.get('tile') is not None:
        check_tiles(options['tile'], options.get('overlap', OVERLAP), model.backbone.window_size)
    scale = model.backbone.upscale
    truths = truths_of(files, Path(truth_dir), scale) if truth_dir else [None] * len(files)
    out_dir.mkdir(parents=True, exist_ok=True)
    results = []
    try:
        for file, truth, advance in tracked(list(zip(files, truths))):
            target = out_dir / f'{file.stem}.png'
            try:
                result = restore_file(model, file, target, truth, options, advance)
            except (UserError, ValueError, OSError) as error:
                result = dict(image=file.name, error=str(error))
            results.append(result)
            about = {k: f'{v:.4f}' if isinstance(v, float) else v for k, v in result.items()}
            said = ', '.join(f'{k} {v}' for k, v in list(about.items())[1:])
            tell(printable(f'{file.name}: {said}'))
    finally:
        with whole_file(out_dir / RESULTS) as partial:
            partial.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    return results


def tracked(pairs: list[tuple]) -> Iterator[tuple]:
    """Show the progress over images: each with a function that takes the share of it done since."""
    with Progress() as bar:
        task = bar.add_task('Enlarging', total=len(pairs))
        for number, pair in enumerate(pairs, 1):
            yield *pair, functools.partial(bar.advance, task)
            bar.update(task, completed=number)


@torch.no_grad()
def restore_file(
    model: Restorer,
    file: Path,
    target: Path,
    truth: Path | None,
    options: dict,
    advance: Callable[[float], None],
) -> dict:
    """Enlarge one image; see :func:`restore`."""
    image = read_image(file)
    device = next(model.parameters()).device
    size = tuple(image.colours.shape[1:])
    share = 1 / number_of_passes(size, model.backbone.window_size, **options)
    hook = model.backbone.register_forward_hook(lambda *_: advance(share))
    try:
        colours = enlarge(model.backbone, image.colours[None].to(device), **options)[0]
    finally:
        hook.remove()
    require_finite(colours, f'{file} enlarged')
    colours.clamp_(0, 1)
    write_png(image.enlarged(colours).array(), target)
    result = dict(image=file.name, width=colours.shape[2], height=colours.shape[1])
    if truth is None:
        return result
    try:
        return dict(result, **figures(to_uint8(colours), truth, model.backbone.upscale))
    except (DataError, ValueError) as error:
        return dict(result, unscored=str(error))


def figures(image: np.ndarray, truth: Path, scale: int) -> dict[str, float]:
    """PSNR and SSIM of an enlarged image (H, W, 3), uint8.

    Raises:
        DataError: If its ground truth cannot be read, or is not of ``scale`` times its source.
        ValueError: If it is too small to be scored.
    """
    expected = to_uint8(read_image(truth).colours)
    height, width = image.shape[:2]
    if not is_of_size(expected, (height, width), scale):
        raise DataError(
            f'{truth} has {expected.shape[1]}x{expected.shape[0]} pixels, and the image enlarged '
            f'by {scale} {width}x{height}.'
        )
    about = dict(scale=scale, gt_path=str(truth))
    return {
        metric.name: metric.measure(image, expected[:height, :width], about)
        for metric in (PSNR(), SSIM())
    }


def require_other_folder(out_dir: Path, inputs: Iterable[Path]) -> None:
    """Keep results from taking the place of what they are made of.

    Raises:
        UserError: If ``out_dir`` is one of the folders of inputs.
    """
    if out_dir.resolve() in [folder.resolve() for folder in inputs]:
        raise UserError(f'The results would take the place of the images in {out_dir}.')


def image_files(source: Path) -> list[Path]:
    """An image, or those of a folder.

    Raises:
        DataError: If there is none, or two would get the same result.
    """
    if not source.exists():
        raise DataError(f'{source} does not exist.')
    return [source] if source.is_file() else list(images_of(source).values())


def truths_of(files: Sequence[Path], folder: Path, scale: int) -> list[Path]:
    """The ground truth of each image.

    Raises:
        DataError: If one has none.
    """
    truths, found = images_of(folder), []
    for file in files:
        truth = truths.get(file.stem) or truths.get(file.stem.removesuffix(f'x{scale}'))
        if truth is None:
            raise DataError(f'{file} has no ground truth in {folder}.')
        found.append(truth)
    return found
