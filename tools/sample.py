"""Draw samples of a trained diffusion model: a grid to look at and the evaluators' .npz.

    python tools/sample.py CONFIG CHECKPOINT --vae VAE_FOLDER --out-dir samples
    python tools/sample.py CONFIG CHECKPOINT --vae VAE_FOLDER --classes 207 360 --guidance 4 \\
        --out-dir grid
    torchrun --nproc_per_node 8 tools/sample.py CONFIG CHECKPOINT --vae VAE_FOLDER --number 50000

The same seed gives the same samples, however many processes draw them. A run that was stopped goes
on where it was. Steps and samplers are settings of the config:
--cfg-options model.process.sampler=ddim model.process.sampling_steps=50
"""

import argparse
import os
from pathlib import Path

from mirrorla_mm.diffusion.sampling import (
    Order,
    draw_share,
    fingerprint,
    load_model,
    save_first,
)
from mirrorla_mm.diffusion.vae import load_vae
from mirrorla_mm.engine.arguments import positive_int
from mirrorla_mm.engine.checkpoint import require_file
from mirrorla_mm.engine.configs import ConfigOptions, read_config
from mirrorla_mm.engine.devices import usable_device
from mirrorla_mm.engine.errors import one_line_errors

import torch


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out-dir', type=Path, default=Path('samples'), help='folder to write to')
    parser.add_argument(
        '--number', type=positive_int, default=64, help='samples; the evaluator wants 50000'
    )
    parser.add_argument('--vae', help='folder of a VAE, for a model of latents')
    parser.add_argument('--classes', type=int, nargs='+', default=[], help='default: at random')
    parser.add_argument('--guidance', type=float, default=1.0, help='1 is none')
    parser.add_argument(
        '--guided-channels', type=positive_int, help="channels to guide; 3 in DiT's and SiT's code"
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--batch-size', type=positive_int, default=32)
    parser.add_argument(
        '--grid', type=positive_int, default=8, help='images along a side of the grid'
    )
    parser.add_argument('--device', help='cuda:0 or cpu (default: a GPU where there is one)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, help='override settings of the config'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # Set by torchrun; the processes share the folder and need not know more of one another.
    rank, world, local = (
        int(os.environ.get(name, default))
        for name, default in (('RANK', 0), ('WORLD_SIZE', 1), ('LOCAL_RANK', 0))
    )
    device = args.device or (f'cuda:{local}' if torch.cuda.is_available() else 'cpu')
    with one_line_errors():
        cfg = read_config(args.config, args.cfg_options)
        require_file(args.checkpoint)
        usable_device(device)
        vae = load_vae(args.vae).to(device) if args.vae else None
        model = load_model(cfg, args.checkpoint, device)
        order = Order(
            args.number,
            args.seed,
            args.guidance,
            args.guided_channels,
            tuple(args.classes),
            args.batch_size,
            fingerprint(model, str(cfg.model.to_dict())),
            fingerprint(vae) if vae else '',
        )
        file = draw_share(model, order, args.out_dir, vae, rank, world)
        if file is not None:
            print(f'{args.number} samples are in {file}, the first in ', end='')
            print(save_first(order, args.out_dir, args.grid))


if __name__ == '__main__':
    main()
