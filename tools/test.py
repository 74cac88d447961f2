"""Test a detector, a segmentor or a super-resolution model and report its metrics."""

import argparse
from copy import deepcopy

import mirrorla_mm  # noqa: F401  (registers the models and the safe checkpoint loader)
from mirrorla_mm.engine.checkpoint import require_file
from mirrorla_mm.engine.checkpoint_fit import CheckpointFitHook
from mirrorla_mm.engine.data import check_data
from mirrorla_mm.engine.deploy import DeployHook
from mirrorla_mm.engine.errors import UserError, one_line_errors
from mirrorla_mm.engine.launch import (
    add_common_arguments,
    build_runner,
    load_config,
    task_scope,
)
from mirrorla_mm.registry import SCOPE

from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument(
        '--out',
        help='save the predictions: detection to this .pkl file, label maps or enlarged images '
        'to this folder',
    )
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument(
        '--show-dir', help='save drawn predictions to this folder, one .png an image'
    )
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between shown images')
    parser.add_argument(
        '--deploy', action='store_true', help='fold the backbone for inference before testing'
    )
    parser.add_argument(
        '--deploy-dtype',
        choices=['bfloat16'],
        help='what deploy mode computes in; implies --deploy',
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    add_common_arguments(parser)
    return parser.parse_args()


def draw_predictions(cfg: Config, args: argparse.Namespace) -> None:
    """Show or save what the model predicts."""
    if task_scope(cfg) == SCOPE:
        raise UserError(
            '--show and --show-dir are not for super-resolution: --out saves the images, and '
            'tools/restore.py draws comparisons.'
        )
    scope, kind = ('mmseg', 'Seg') if task_scope(cfg) == 'mmseg' else ('mmdet', 'Det')
    cfg.setdefault(
        'visualizer',
        ConfigDict(
            type=f'{scope}.{kind}LocalVisualizer',
            name='visualizer',
            vis_backends=[ConfigDict(type='LocalVisBackend')],
        ),
    )
    hook = dict(
        type='mirrorla_mm.DrawHook',
        folder=args.show_dir,
        show=args.show,
        wait_time=args.wait_time,
    )
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]


def augment_at_test_time(cfg: Config) -> None:
    """Wrap the model and replace the pipeline; for boxes, flips where the config has none.

    Super-resolution averages over the 8 ways to flip and transpose an image.
    """
    if task_scope(cfg) == SCOPE:
        cfg.merge_from_dict({'model.test_cfg.self_ensemble': True})
        return
    if task_scope(cfg) == 'mmseg':
        if not {'tta_model', 'tta_pipeline'} <= cfg.keys():
            raise UserError('--tta needs tta_model and tta_pipeline in the config.')
    elif predicts_masks(cfg.model):
        raise UserError(
            '--tta merges boxes alone, and this config predicts masks: test it without --tta.'
        )
    else:
        cfg.setdefault('tta_model', {'type': 'DetTTAModel', 'tta_cfg': DET_TTA_NMS})
        cfg.setdefault('tta_pipeline', flipped(test_dataset(cfg).pipeline))
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    test_dataset(cfg).pipeline = cfg.tta_pipeline


DET_TTA_NMS = {'nms': {'type': 'nms', 'iou_threshold': 0.5}, 'max_per_img': 100}
DET_TTA_KEYS = (
    'img_id',
    'img_path',
    'ori_shape',
    'img_shape',
    'scale_factor',
    'flip',
    'flip_direction',
)


def predicts_masks(model: ConfigDict) -> bool:
    """Whether a detector has a head for masks."""
    return any(
        name.endswith('mask_head') and value is not None
        for name, value in (*model.items(), *(model.get('roi_head') or {}).items())
    )


def test_dataset(cfg: Config) -> ConfigDict:
    """The data set within its wrappers."""
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset


def flipped(pipeline: list) -> list:
    """The pipeline with its packing step done twice, flipped and not."""
    flips = [{'type': 'RandomFlip', 'prob': prob} for prob in (1.0, 0.0)]
    pack = [{'type': 'PackDetInputs', 'meta_keys': DET_TTA_KEYS}]
    return [*deepcopy(pipeline[:-1]), {'type': 'TestTimeAug', 'transforms': [flips, pack]}]


def save_predictions(runner: Runner, out: str) -> None:
    """Save detections to a pickle file; segmentation maps are saved by their metric."""
    from mmdet.evaluation import DumpDetResults

    runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=out))


def save_images(cfg: Config, out: str) -> None:
    """Let label maps be saved by their metric, and enlarged images by a hook."""
    if task_scope(cfg) == SCOPE:
        hook = dict(type='mirrorla_mm.SaveImagesHook', folder=out)
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
        return
    evaluators = cfg.test_evaluator
    for metric in evaluators if isinstance(evaluators, list) else [evaluators]:
        metric.update(output_dir=out, keep_results=True)


def build(args: argparse.Namespace) -> Runner:
    """Build the runner that the command line asks for."""
    cfg = load_config(args)
    if not cfg.get('test_dataloader'):
        raise UserError(
            f'{args.config} has no test_dataloader: a diffusion model is judged by its samples, '
            'which tools/sample.py draws.'
        )
    detection = task_scope(cfg) not in ('mmseg', SCOPE)
    if args.out and detection and not args.out.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out of a detector is a .pkl file, not {args.out}.')
    require_file(args.checkpoint)
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.show or args.show_dir:
        draw_predictions(cfg, args)
    if args.tta:
        augment_at_test_time(cfg)
    if args.out and not detection:
        save_images(cfg, args.out)
    check_data(cfg, ('test_dataloader', 'test_evaluator'))
    runner = build_runner(cfg)
    if args.out and detection:
        save_predictions(runner, args.out)
    runner.register_hook(CheckpointFitHook(args.checkpoint))
    if args.deploy or args.deploy_dtype:
        runner.register_hook(DeployHook(args.deploy_dtype))
    return runner


def main() -> None:
    """Test."""
    args = parse_args()
    with one_line_errors():
        build(args).test()


if __name__ == '__main__':
    main()
