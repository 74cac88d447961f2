"""Samples by several processes: parts that can be resumed, a grid, and the evaluators' file."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from numpy.lib import format as npy
from PIL import Image
from rich.progress import track
from torch import Tensor, nn

from ..engine.atomic import whole_file
from ..engine.checkpoint import CheckpointError, load_checkpoint_file
from ..engine.checkpoint_fit import check_fit
from ..engine.errors import UserError
from ..engine.finite import require_finite
from ..engine.settings import keep_settings
from ..registry import MODELS
from .model import DiffusionModel, check_guidance

PARTS = 'parts'
ORDER = 'order.json'
GRID = 'grid.png'


@dataclass(frozen=True)
class Order:
    """Samples to be drawn; the same order gives the same ones, however many processes draw.

    Attributes:
        number (int): Samples.
        seed (int): Of classes and noise.
        guidance (float): Of classifier-free guidance; 1 is none.
        guided_channels (int, optional): Channels that are guided; all by default.
        classes (tuple[int, ...]): In turn; drawn at random where there are none.
        batch_size (int): Samples at a time.
        model (str): A fingerprint of weights and config.
        vae (str): A fingerprint of the decoder's weights; empty without one.
    """

    number: int
    seed: int
    guidance: float
    guided_channels: int | None
    classes: tuple[int, ...]
    batch_size: int
    model: str
    vae: str = ''

    @property
    def batches(self) -> int:
        return -(-self.number // self.batch_size)

    def samples_of(self, batch: int) -> range:
        """Numbers of the samples of a batch."""
        first = batch * self.batch_size
        return range(first, min(first + self.batch_size, self.number))


def load_model(cfg: Config, checkpoint: str | os.PathLike, device: str) -> DiffusionModel:
    """Build the model of a config with its trained weights, the averaged ones where it has them.

    Args:
        cfg (Config): Of a diffusion model.
        checkpoint (str | os.PathLike): Of a training here, or published by DiT's or SiT's authors.
        device (str): Such as ``'cuda:0'``.

    Returns:
        DiffusionModel: Ready to sample.

    Raises:
        CheckpointError: If the checkpoint cannot be read or is of another model.
        UserError: If the config is none of a diffusion model.
    """
    if cfg.get('model', {}).get('type') != 'mirrorla_mm.DiffusionModel':
        raise UserError(f'{cfg.filename} is no config of a diffusion model.')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    content = load_checkpoint_file(checkpoint, map_location='cpu')
    if not isinstance(content, dict):
        raise CheckpointError(f'The checkpoint {checkpoint} holds no weights.')
    # Both authors' files hold the network's own names, those of a training beside its average.
    published = content.get('ema') or content
    part: nn.Module = model.backbone if 'x_embedder.proj.weight' in published else model
    check_fit(part, published, str(checkpoint))
    return model.to(device).eval()


def fingerprint(model: nn.Module, settings: str = '') -> str:
    """Of the weights of a model and of what else its settings say about it."""
    digest = hashlib.sha256(settings.encode())
    for weight in model.state_dict().values():
        digest.update(weight.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_order(order: Order, num_classes: int, channels: int) -> None:
    """Make sure that a model of so many classes and channels can draw an order.

    Raises:
        UserError: If a class or the guided channels are out of range, or a number makes no sense.
    """
    check_guidance(order.guidance)
    if order.number < 1 or order.batch_size < 1 or order.seed < 0:
        raise UserError('The number of samples and of a batch need to be 1 at least, the seed 0.')
    wrong = [label for label in order.classes if not 0 <= label < num_classes]
    if wrong:
        raise UserError(f'There is no class {wrong[0]}: the model has 0 to {num_classes - 1}.')
    if order.guided_channels is not None and not 1 <= order.guided_channels <= channels:
        raise UserError(f'The guided channels need to be 1 to {channels}: {order.guided_channels}.')


def check_vae(vae: nn.Module | None, channels: int) -> None:
    """Make sure that what a model draws are images, or latents of the VAE.

    Raises:
        UserError: If they are neither.
    """
    if vae is None:
        if channels != 3:
            raise UserError('This model draws latents: name the folder of a VAE with --vae.')
    elif vae.config.latent_channels != channels:
        raise UserError(
            f'The VAE decodes latents of {vae.config.latent_channels} channels, and this model '
            f'draws {channels}: name its own VAE with --vae, or none where it draws images.'
        )


def draw_share(
    model: DiffusionModel,
    order: Order,
    folder: Path,
    vae: nn.Module | None = None,
    rank: int = 0,
    world: int = 1,
) -> Path | None:
    """Draw this process's share of the missing batches; the process that ends last joins them.

    Args:
        model (DiffusionModel): From :func:`load_model`.
        order (Order): What to draw.
        folder (Path): Gets ``parts/``, one file a batch, and in the end the evaluators' file.
            Made where missing.
        vae (nn.Module, optional): Of latents; from :func:`~mirrorla_mm.diffusion.vae.load_vae`.
        rank (int): Of this process, in [0, world).
        world (int): Processes that share the batches.

    Returns:
        Path, optional: The evaluators' file, or None while other processes are drawing.

    Raises:
        UserError: If the folder holds samples of another order, the model draws latents and there
            is no VAE of such latents, or a sample holds NaN or infinity.
    """
    channels = model.backbone.in_shape[0]
    check_order(order, model.backbone.num_classes, channels)
    check_vae(vae, channels)
    begun = any((folder / PARTS).glob('*.npz'))
    keep_settings(folder / ORDER, asdict(order), begun, way_out='name another --out-dir')
    mine = [b for b in range(rank, order.batches, world) if not part_file(folder, b).exists()]
    for batch in track(mine, 'Drawing', disable=rank > 0):
        images, labels = draw_batch(model, order, batch, vae)
        with whole_file(part_file(folder, batch)) as partial, partial.open('wb') as file:
            np.savez(file, images=images, labels=labels)
    missing = [b for b in range(order.batches) if not part_file(folder, b).exists()]
    return None if missing else join_parts(order, folder)


def draw_batch(
    model: DiffusionModel, order: Order, batch: int, vae: nn.Module | None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one batch.

    Args:
        model (DiffusionModel): From :func:`load_model`.
        order (Order): What to draw.
        batch (int): Number of the batch, from 0.
        vae (nn.Module, optional): Of latents.

    Returns:
        tuple[np.ndarray, np.ndarray]: Images (n, h, w, 3), uint8, and classes (n,), int64.

    Raises:
        UserError: If an image holds NaN or infinity.
    """
    backbone, device = model.backbone, next(model.parameters()).device
    numbers = order.samples_of(batch)
    noise = NoiseStreams(order.seed, numbers, backbone.in_shape, device)
    labels = noise.labels(backbone.num_classes)
    if order.classes:
        labels = torch.tensor([order.classes[n % len(order.classes)] for n in numbers])
    data = model.sample(labels.to(device), noise, order.guidance, order.guided_channels)
    if vae is not None:
        with torch.no_grad():
            data = (vae.decode(data).sample + 1) * 127.5
    what = f'One of the samples {numbers[0]} to {numbers[-1]}'
    return to_uint8(data, what), labels.numpy()


class NoiseStreams:
    """Standard normal noise for each sample from a stream of its own.

    So a sample is the same whoever draws it, beside whatever others.

    Args:
        seed (int): Of the run.
        numbers (Iterable[int]): Numbers of the samples.
        shape (tuple[int, ...]): Of one sample.
        device (torch.device | str): Where the noise is needed; it is drawn on the CPU.
    """

    def __init__(
        self,
        seed: int,
        numbers: Iterable[int],
        shape: tuple[int, ...],
        device: torch.device | str = 'cpu',
    ) -> None:
        # torch's CPU generator takes 32 bits of a seed, so that two of 50000 samples could meet.
        self.streams = [np.random.default_rng((seed, number)) for number in numbers]
        self.shape = shape
        self.device = device

    def __call__(self) -> Tensor:
        """The next noise of every sample, (B, *shape)."""
        noise = [stream.standard_normal(self.shape, np.float32) for stream in self.streams]
        return torch.from_numpy(np.stack(noise)).to(self.device)

    def labels(self, num_classes: int) -> Tensor:
        """A class for every sample, (B,), int64."""
        return torch.tensor([int(stream.integers(num_classes)) for stream in self.streams])


def part_file(folder: Path, batch: int) -> Path:
    """Where the samples of a batch are kept."""
    return folder / PARTS / f'{batch:06d}.npz'


def join_parts(order: Order, folder: Path) -> Path:
    """Write what guided-diffusion's evaluator reads: ``arr_0``, images, and ``arr_1``, classes.

    Raises:
        UserError: If a part is damaged.
    """
    shape = read_part(folder, 0)[0].shape[1:]
    target = folder / f'samples_{order.number}x{"x".join(map(str, shape))}.npz'
    header = dict(shape=(order.number, *shape), fortran_order=False, descr='|u1')
    labels = []
    with whole_file(target) as partial, zipfile.ZipFile(partial, 'w') as archive:
        with archive.open('arr_0.npy', 'w', force_zip64=True) as file:
            npy.write_array_header_1_0(file, header)
            for batch in range(order.batches):
                images, classes = read_part(folder, batch)
                file.write(images.tobytes())
                labels.append(classes)
        with archive.open('arr_1.npy', 'w') as file:
            npy.write_array(file, np.concatenate(labels))
    return target


def read_part(folder: Path, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and classes of a batch.

    Raises:
        UserError: If the file is damaged.
    """
    file = part_file(folder, batch)
    try:
        with np.load(file) as part:
            return part['images'], part['labels']
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f'{file} is damaged: delete it and draw again.') from error


def save_grid(images: np.ndarray, path: Path, columns: int) -> None:
    """Write images as one PNG, whole or not at all.

    Args:
        images (np.ndarray): Shape (n, h, w, 3), uint8.
        path (Path): The file.
        columns (int): Images in a row.
    """
    with whole_file(path) as partial:
        Image.fromarray(tile(images, columns)).save(partial, format='PNG')


def save_first(order: Order, folder: Path, columns: int) -> Path:
    """Write a square grid of the first samples, in the order of their numbers."""
    images: Sequence[np.ndarray] = []
    for batch in range(order.batches):
        if sum(map(len, images)) < columns**2:
            images = [*images, read_part(folder, batch)[0]]
    save_grid(np.concatenate(images)[: columns**2], folder / GRID, columns)
    return folder / GRID


def tile(images: np.ndarray, columns: int, margin: int = 1) -> np.ndarray:
    """Put images row by row into one; what is left of the last row is white.

    Args:
        images (np.ndarray): Shape (n, h, w, 3), uint8.
        columns (int): Images in a row.
        margin (int): White pixels between images and around them. Defaults to 1.

    Returns:
        np.ndarray: Shape (rows (h + margin) + margin, columns (w + margin) + margin, 3), uint8.
    """
    rows = -(-len(images) // columns)
    height, width = (side + margin for side in images.shape[1:3])
    sheet = np.full((rows * height + margin, columns * width + margin, 3), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * height + margin, number % columns * width + margin
        sheet[top : top + height - margin, left : left + width - margin] = image
    return sheet


def to_uint8(x: Tensor, what: str = 'An image') -> np.ndarray:
    """(n, 3, h, w) in 0..255, not clamped, to (n, h, w, 3).

    Raises:
        UserError: If it holds NaN or infinity, naming ``what``.
    """
    require_finite(x, what)
    return x.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
