"""Turn a trained softmax backbone into a linear one, and keep what it has learned.

The attention of the chosen stages is replaced and shared weights are copied. Then each new layer
learns the outputs of the one it replaces (attention), the backbone learns the outputs of the old
backbone (features), and the model is trained shortly on its task by the config (fine-tuned). The
same command goes on where it was stopped. It ends with one table, and with a config and a
checkpoint for the ordinary tools.

python tools/linearise.py CONFIG CHECKPOINT --attn STILLAttention --stages 3 4
"""

import argparse
import logging
from statistics import mean

import mirrorla_mm  # noqa: F401  (registers the models and the safe checkpoint loader)
from mirrorla_mm.analysis.compare import Cost, measure
from mirrorla_mm.engine.checkpoint import require_file
from mirrorla_mm.engine.configs import ConfigOptions
from mirrorla_mm.engine.errors import one_line_errors
from mirrorla_mm.engine.launch import add_common_arguments, load_config
from mirrorla_mm.engine.linearise import swin_warning
from mirrorla_mm.engine.linearise_model import Inputs, build_backbone
from mirrorla_mm.engine.linearise_stages import STEPS, Linearisation

import torch
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from rich.console import Console
from rich.table import Table


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of the trained model')
    parser.add_argument('checkpoint', help='its checkpoint; a backbone alone is enough')
    parser.add_argument('--attn', required=True, metavar='TYPE', help='the new attention')
    pairs = dict(nargs='+', action=ConfigOptions, default={}, metavar='KEY=VALUE')
    parser.add_argument(
        '--attn-options', **pairs, help='its options, such as feature_map=np-mirror'
    )
    parser.add_argument(
        '--backbone-options',
        **pairs,
        help='options of the new backbone alone, such as linear_window=7 for Swin',
    )
    parser.add_argument(
        '--stages',
        type=int,
        nargs='+',
        default=[3, 4],
        help='stages of the backbone that get it, from 1 (default: 3 4)',
    )
    parser.add_argument(
        '--iters',
        type=int,
        nargs=3,
        default=[1000, 1000, 4000],
        metavar=tuple(step.upper() for step in STEPS),
        help='iterations of the three steps; 0 leaves one out (default: 1000 1000 4000)',
    )
    parser.add_argument(
        '--lr',
        type=float,
        nargs=2,
        default=[1e-2, 1e-4],
        metavar=('ATTENTION', 'FEATURES'),
        help="learning rates of the first two (default: 0.01 0.0001); the third has the config's",
    )
    parser.add_argument('--no-test', action='store_true', help='measure no metric')
    add_common_arguments(parser)
    args = parser.parse_args()
    if min(args.iters) < 0:
        parser.error('--iters takes numbers from 0 on.')
    if 'type' in args.attn_options:
        parser.error('--attn-options takes no type: name the attention by --attn.')
    if 'type' in args.backbone_options:
        parser.error('--backbone-options takes no type: the config names the backbone.')
    return args


def table(run: Linearisation, inputs: list[Inputs], metrics: bool) -> Table:
    """Error of each layer, metrics, latency and memory, of the old model and of each state."""
    states = list(run.states())
    result = Table(title=f'{run.work_dir}: squared error of the new layers, over their power')
    for name in ('', 'old', *states):
        result.add_column(name, justify='right' if name else 'left')
    errors = [run.errors(state, inputs) for state in states]
    for layer in errors[0]:
        result.add_row(layer, '0', *(f'{error[layer]:.4f}' for error in errors))
    means = [f'{mean(error.values()):.4f}' for error in errors]
    result.add_row('mean', '0', *means, end_section=True)
    if metrics:
        scores = [run.metrics(state) or {} for state in ('teacher', *states)]
        for name in scores[-1] or scores[0]:
            cells = (f'{score[name]:.4g}' if name in score else '-' for score in scores)
            result.add_row(name, *cells)
    old, new = costs(run, tuple(x[:1] for x in inputs[0]))
    empty = [''] * (len(states) - 1)
    size = 'x'.join(map(str, inputs[0][0].shape[-2:]))
    result.add_row(
        f'backbone, ms at {size} on a CPU',
        f'{1e3 * old.seconds:.1f}',
        *empty,
        f'{1e3 * new.seconds:.1f}',
    )
    result.add_row(
        'its memory, MiB', f'{old.memory / 2**20:.1f}', *empty, f'{new.memory / 2**20:.1f}'
    )
    return result


def costs(run: Linearisation, inputs: Inputs) -> list[Cost]:
    """Latency and memory of the old and of the new backbone."""
    found = []
    for cfg in (run.cfg, run.student):
        backbone = build_backbone(cfg.model.backbone)
        backbone.eval()
        with torch.no_grad():
            found.append(
                measure(lambda model=backbone: model(*inputs), inputs[0].device, repeats=5)
            )
    return found


def main() -> None:
    args = parse_args()
    with one_line_errors():
        cfg = load_config(args, ('model.backbone',))
        require_file(args.checkpoint)
        if args.work_dir is None:
            cfg.work_dir = f'{cfg.work_dir}-{args.attn}'
        run = Linearisation(
            cfg,
            args.checkpoint,
            dict(type=args.attn, **args.attn_options),
            args.stages,
            dict(zip(STEPS, args.iters)),
            dict(zip(STEPS, args.lr)),
            args.backbone_options,
        )
        if warning := swin_warning(cfg.model.backbone, args.stages):
            print_log(warning, 'current', logging.WARNING)
        config, checkpoint = run.export(run.run())
        result = table(run, run.inputs(), not args.no_test)
        if is_main_process():
            Console(width=140).print(result)
            print(f'The linear model: {config} {checkpoint}')


if __name__ == '__main__':
    main()
