"""Encode images by a VAE, so that a latent diffusion model can train without it.

    python tools/encode_latents.py data/imagenet/train VAE_FOLDER data/imagenet_latents/train

The VAE is diffusers' AutoencoderKL in a local folder (extra "diffusers"). A run that was stopped
goes on where it was.
"""

import argparse
from pathlib import Path

from mirrorla_mm.diffusion.vae import encode_folders, load_vae
from mirrorla_mm.engine.arguments import positive_int
from mirrorla_mm.engine.devices import usable_device
from mirrorla_mm.engine.errors import one_line_errors

import torch


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('images', type=Path, help='folder of a folder of images for each class')
    parser.add_argument('vae', help='folder of the VAE')
    parser.add_argument('out', type=Path, help='folder to write to')
    parser.add_argument(
        '--size', type=positive_int, default=256, help='side of the images in pixels'
    )
    parser.add_argument('--batch-size', type=positive_int, default=16)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors():
        vae = load_vae(args.vae).to(usable_device(args.device))
        number = encode_folders(vae, args.images, args.out, args.size, args.batch_size)
    print(f'{number} images were encoded; all are in {args.out}.')


if __name__ == '__main__':
    main()
