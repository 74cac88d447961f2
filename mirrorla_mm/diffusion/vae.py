"""The optional VAE of latents: diffusers' ``AutoencoderKL``, from a local folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from ..engine.atomic import whole_file
from ..engine.errors import UserError
from ..engine.images import IMAGES
from ..engine.settings import keep_settings
from ..stack import install_command
from .datasets import class_folders, files_of, read_square
from .sampling import fingerprint

SETTINGS = 'encoding.json'


def load_vae(folder: str | os.PathLike) -> nn.Module:
    """diffusers' ``AutoencoderKL`` with the weights of a folder; nothing is downloaded.

    Args:
        folder (str | os.PathLike): As ``save_pretrained`` writes it, with ``config.json``.

    Raises:
        UserError: If diffusers is not installed, or the folder holds no such model.
    """
    if not Path(folder, 'config.json').is_file():
        raise UserError(f'{folder} is no folder of a VAE: it holds no config.json.')
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise UserError(
            f'A VAE needs diffusers, which is not installed: {install_command("diffusers")}'
        ) from error
    try:
        return AutoencoderKL.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True
        ).eval()
    except (OSError, ValueError) as error:
        raise UserError(f'The VAE in {folder} cannot be loaded: {error}') from error


@torch.no_grad()
def encode_views(vae: nn.Module, images: Tensor) -> np.ndarray:
    """Mean and standard deviation of the latents of images and of their mirror images.

    Args:
        vae (nn.Module): From :func:`load_vae`.
        images (Tensor): In 0..255, shape (B, 3, h, w).

    Returns:
        np.ndarray: Shape (B, 2, 2, C, S, S): image and mirror image, mean and deviation; float16.
    """
    x = images.float() / 127.5 - 1
    views = []
    for view in (x, x.flip(3)):
        latents = vae.encode(view).latent_dist
        views.append(torch.stack((latents.mean, latents.std), dim=1))
    return torch.stack(views, dim=1).cpu().numpy().astype(np.float16)


def encode_folders(
    vae: nn.Module, source: Path, target: Path, size: int = 256, batch_size: int = 16
) -> int:
    """Encode a data set of a folder a class, file by file; what is there already is left alone.

    Args:
        vae (nn.Module): From :func:`load_vae`.
        source (Path): Folders of images.
        target (Path): Gets the same folders, of ``.npy`` files for
            :class:`~mirrorla_mm.diffusion.datasets.LoadLatent`.
        size (int): Side in pixels that images are shrunk and cut to. Defaults to 256.
        batch_size (int): Images at a time. Defaults to 16.

    Returns:
        int: Images that were encoded now.

    Raises:
        DataError: If there are no images, or one cannot be read.
        UserError: If a number is below 1, or the target holds latents of another VAE or size.
    """
    if size < 1 or batch_size < 1:
        raise UserError(f'Size and batch size need to be 1 at least, got {size} and {batch_size}.')
    images = [path for folder in class_folders(source) for path in files_of(folder, IMAGES)]
    settings = dict(size=size, vae=fingerprint(vae))
    keep_settings(target / SETTINGS, settings, any(target.rglob('*.npy')))
    # The suffix stays, as two images may differ in it alone.
    places = [target / path.relative_to(source).with_name(f'{path.name}.npy') for path in images]
    todo = [pair for pair in zip(images, places) if not pair[1].exists()]
    device = next(vae.parameters()).device
    for first in track(range(0, len(todo), batch_size), 'Encoding'):
        part = todo[first : first + batch_size]
        pixels = np.stack([read_square(str(path), size) for path, _ in part])
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)
        for (_, place), views in zip(part, encode_views(vae, x)):
            with whole_file(place) as partial, partial.open('wb') as file:
                np.save(file, views)
    return len(todo)
