"""The two command lines: train, resume, test, and one sentence for each mistake."""

import json
import os
import pickle
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner
from PIL import Image

from mirrorla_mm.engine.checkpoint import load_checkpoint_file
from tests import processes
from tests.strangers import Call

from .conftest import REPOSITORY, TASKS


def metrics(work_dir: Path) -> list[dict]:
    """Everything that the runs of a work dir measured, oldest first."""
    files = sorted(work_dir.glob('*/vis_data/scalars.json')) + sorted(work_dir.glob('*/2*.json'))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [line for line in lines if {'coco/bbox_mAP', 'mIoU', 'mean_logit'} & line.keys()]


VALIDATED = [f'{number:05d}_leftImg8bit.png' for number in range(4)]


def drawn_files(tmp_path: Path) -> list[str]:
    return sorted(
        str(path.relative_to(tmp_path / 'drawn')) for path in tmp_path.glob('drawn/**/*.*')
    )


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_train_resume_and_test(task, config, run, tmp_path, capsys):
    path, work_dir = config(task), tmp_path / 'work_dirs' / task
    run('train', path, '--resume', '--cfg-options', 'train_cfg.max_epochs=1')
    said = ''.join(capsys.readouterr())
    assert f'There is no checkpoint in work_dirs/{task} to resume from' in said
    assert 'pkg_resources' not in said and 'norm_eval=True freezes' not in said
    first = load_checkpoint_file(work_dir / 'epoch_1.pth')
    run('train', path, '--resume')
    second = load_checkpoint_file(work_dir / 'epoch_2.pth')
    assert (first['meta']['iter'], second['meta']['iter']) == (2, 4)
    run('test', path, work_dir / 'epoch_2.pth')
    validated, tested = metrics(work_dir)[-2:]
    shared = {'coco/bbox_mAP', 'coco/bbox_mAP_50', 'mIoU', 'aAcc'} & tested.keys()
    assert shared and all(validated[key] == tested[key] for key in shared)


@pytest.mark.slow
def test_resume_in_a_config_is_the_option(config, run, sentence, tmp_path):
    path, folder = config('segmentation'), tmp_path / 'w'
    asked = ('--work-dir', 'w', '--cfg-options', 'resume=True')
    run('train', path, *asked, 'train_cfg.max_epochs=1', 'randomness.seed=5')  # nothing there yet
    (folder / 'last_checkpoint').write_text('gone.pth')
    other = (
        'model.backbone.arch.embed_dims=[8,16,16,16]',
        'model.decode_head.in_channels=[16,16,16]',
    )
    assert 'epoch_1.pth is of another model' in sentence('train', path, *asked, *other)
    run('train', path, *asked)
    meta = load_checkpoint_file(folder / 'epoch_2.pth')['meta']
    assert (meta['iter'], meta['seed']) == (4, 5)


@pytest.mark.slow
def test_resume_from_an_address(config, run, served, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    path = config('segmentation')
    run('train', path, '--work-dir', 'w', '--cfg-options', 'train_cfg.max_epochs=1')
    run('train', path, '--work-dir', 'again', '--resume', f'{served}/w/epoch_1.pth')
    assert [file.name for file in (tmp_path / 'again').glob('*.pth')] == ['epoch_2.pth']


@pytest.mark.slow
def test_killed_training_keeps_its_best_and_validates_what_was_lost(config, run, tmp_path, capsys):
    more = """
default_hooks = dict(checkpoint=dict(save_best='mIoU'))
train_cfg = dict(max_epochs=2, val_interval=1)
model['backbone'].update(norm_eval=True)
"""
    path = config('segmentation', more)
    run('train', path, '--work-dir', 'w')
    assert 'backbone.norm_eval=True freezes' in capsys.readouterr().out
    # As it was before the second validation ended.
    (tmp_path / 'w' / 'last_validation').write_text('2\n')
    before = len(metrics(tmp_path / 'w'))
    run('train', path, '--work-dir', 'w', '--resume')
    assert len(metrics(tmp_path / 'w')) == before + 1
    (best,) = (tmp_path / 'w').glob('best_mIoU_epoch_*.pth')
    run('test', path, best, '--work-dir', 'w')
    assert metrics(tmp_path / 'w')[-1]['mIoU'] == max(m['mIoU'] for m in metrics(tmp_path / 'w'))


def test_second_training_in_a_work_dir_is_refused(config, sentence, tmp_path):
    holder = tmp_path / 'hold.py'
    holder.write_text(
        'import sys, time\n'
        'from mirrorla_mm.engine.work_dir import hold_work_dir\n'
        'hold_work_dir(sys.argv[1])\n'
        'open("held", "x").close()\n'
        'time.sleep(600)\n'
    )
    process = processes.start(tmp_path / 'log', holder, tmp_path / 'w')
    try:
        while not (tmp_path / 'held').exists():
            assert process.is_alive(), (tmp_path / 'log').read_text()
            time.sleep(0.05)
        line = sentence('train', config('segmentation'), '--work-dir', 'w')
    finally:
        processes.kill(process)
    assert f'process {process.pid} on' in line and '--work-dir' in line
    assert [file.name for file in (tmp_path / 'w').iterdir()] == ['.training']


def test_detections_are_saved_and_drawn(config, run, tmp_path):
    path = config('detection')
    run('train', path, '--work-dir', 'w', '--cfg-options', 'train_cfg.max_epochs=1')
    run('test', path, 'w/epoch_1.pth', '--out', 'out.pkl', '--show-dir', 'drawn', '--tta')
    saved = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert len(saved) == 4 and all('bboxes' in item['pred_instances'] for item in saved)
    assert drawn_files(tmp_path) == VALIDATED


def test_label_maps_are_saved_and_drawn(config, run, tmp_path):
    path = config('segmentation')
    run('train', path, '--work-dir', 'w', '--cfg-options', 'train_cfg.max_epochs=1')
    run('test', path, 'w/epoch_1.pth', '--out', 'maps', '--show-dir', 'drawn')
    sizes = [Image.open(file).size for file in (tmp_path / 'maps').iterdir()]
    assert sizes == [(64, 64)] * 4
    assert drawn_files(tmp_path) == VALIDATED


@pytest.mark.slow
def test_segmentation_is_augmented_as_the_config_says(config, run):
    more = """
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale_factor=ratio, keep_ratio=True) for ratio in (1.0, 1.5)],
            [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0.0, 1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
"""
    path = config('segmentation', more)
    run('train', path, '--work-dir', 'w', '--cfg-options', 'train_cfg.max_epochs=1')
    run('test', path, 'w/epoch_1.pth', '--work-dir', 'tested', '--tta')
    assert len(metrics(Path('tested'))) == 1


def test_amp_and_scaled_learning_rate(config, run, tmp_path):
    path = config('segmentation', 'auto_scale_lr = dict(base_batch_size=8)\n')
    run('train', path, '--amp', '--auto-scale-lr', '--cfg-options', 'train_cfg.max_epochs=1')
    saved = load_checkpoint_file(tmp_path / 'work_dirs' / 'segmentation' / 'epoch_1.pth')
    assert saved['optimizer']['param_groups'][0]['lr'] == pytest.approx(1e-3 * 4 / 8)


RECIPES = re.findall('`(--[^`]+)`', (REPOSITORY / 'docs' / 'at_scale.md').read_text('utf-8'))


@pytest.mark.slow
@pytest.mark.parametrize('recipe', RECIPES)
def test_recipe_of_the_page_on_scale_trains_as_written(recipe, config, run, tmp_path):
    more = """
auto_scale_lr = dict(base_batch_size=8)
train_cfg = dict(max_epochs=1, val_interval=9)
"""
    run('train', config('segmentation', more), '--work-dir', 'w', *shlex.split(recipe))
    saved = load_checkpoint_file(tmp_path / 'w' / 'epoch_1.pth')
    assert saved['meta']['iter'] == 2
    assert ('ema_state_dict' in saved) == ('EMAHook' in recipe)


# --- Mistakes -------------------------------------------------------------------------------------


@pytest.fixture()
def sentence(run, capsys, monkeypatch):
    """Run a command line that fails; return its one line that starts with ``error:``."""
    monkeypatch.delenv('MIRRORLA_DEBUG', raising=False)

    def fail(*args) -> str:
        with pytest.raises(SystemExit) as info:
            run(*args)
        assert info.value.code == 1
        error = capsys.readouterr().err
        assert 'Traceback' not in error
        (line,) = re.findall(r'^error: .*', error, re.M)
        assert error.rstrip().endswith(line)
        return line

    return fail


def test_options_that_are_no_pairs(run, capsys):
    with pytest.raises(SystemExit):
        run('train', 'any.py', '--cfg-options', 'a=1', 'foo')
    assert "takes KEY=VALUE pairs, and 'foo' has no '='" in capsys.readouterr().err


def test_tracker_that_is_not_installed(config, sentence, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    monkeypatch.setitem(sys.modules, 'tensorboardX', None)
    more = """
visualizer = dict(
    type='SegLocalVisualizer', name='visualizer', vis_backends=[dict(type='TensorboardVisBackend')]
)
"""
    assert re.search(
        'not installed: .*tensorboard', sentence('train', config('segmentation', more))
    )


def test_augmented_test_of_masks_is_refused_beforehand(config, sentence):
    more = "model = dict(mask_head=dict(type='FCNMaskHead'))\n"
    line = sentence('test', config('detection', more), __file__, '--tta')
    assert '--tta merges boxes alone' in line


@pytest.mark.slow
def test_parameters_without_a_part_in_the_loss_are_named(config, sentence, monkeypatch):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    launched = dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    for name, value in launched.items():
        monkeypatch.setenv(name, str(value))
    path = config('segmentation', "model['backbone']['out_indices'] = (0, 1, 2, 3)\n")
    more = ('--cfg-options', 'model.decode_head.in_index=[1,2,3]')
    try:
        line = sentence('train', path, '--launcher', 'pytorch', *more)
    finally:
        torch.distributed.destroy_process_group()
    assert re.search(r'2 parameters .*: backbone\.\S*norm\S*0.*find_unused_parameters=True', line)


def test_config_that_is_missing_or_broken(sentence, tmp_path):
    assert 'nowhere.py does not exist' in sentence('train', 'nowhere.py')
    (tmp_path / 'broken.py').write_text('model = dict(')
    assert 'broken.py cannot be used' in sentence('train', 'broken.py')


def test_wrong_arch_and_unknown_type(config, sentence):
    path = config('segmentation', "model['backbone']['arch'] = 'xxl'\n")
    assert 'xxl' in sentence('train', path)
    options = ('--cfg-options', 'model.decode_head.type=NoSuchHead')
    assert 'NoSuchHead is not in the mmseg::model registry' in sentence(
        'train', config('segmentation'), *options
    )


def test_options_that_the_config_does_not_support(config, sentence):
    path = config('detection')
    assert 'auto_scale_lr.base_batch_size' in sentence('train', path, '--auto-scale-lr')
    assert '.pkl file' in sentence('test', path, 'a.pth', '--out', 'folder')
    assert 'tta_pipeline' in sentence('test', config('segmentation'), __file__, '--tta')
    options = ('--cfg-options', 'optim_wrapper.type=OtherWrapper')
    assert 'OtherWrapper' in sentence('train', path, '--amp', *options)


@pytest.mark.parametrize('task', TASKS)
def test_missing_data_are_named_with_the_options_to_change(task, config, sentence, monkeypatch):
    monkeypatch.setenv('MIRRORLA_DEMO_DATA', 'no/such/data')
    line = sentence('train', config(task))
    lost = 'annotations/instances_train.json' if task == 'detection' else 'leftImg8bit/train'
    assert f'no/such/data/{lost} does not exist' in line
    assert line.endswith('--cfg-options data_root=PATH')
    line = sentence('train', config(task), '--cfg-options', 'data_root=elsewhere')
    assert f'elsewhere/{lost} does not exist' in line
    option = 'train_dataloader.dataset.data_root'
    line = sentence('train', config(task), '--cfg-options', f'{option}=/elsewhere')
    assert f'/elsewhere/{lost} does not exist' in line and f'{option}=PATH' in line
    assert ('val_evaluator.ann_file=PATH' in line) == (task == 'detection')


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_data_root_moves_all_data(task, config, run, drawn, monkeypatch, tmp_path):
    monkeypatch.setenv('MIRRORLA_DEMO_DATA', 'no/such/data')
    options = ('--cfg-options', f'data_root={drawn}', 'train_cfg.max_epochs=1')
    run('train', config(task), '--work-dir', 'w', *options)
    assert metrics(tmp_path / 'w')


DAMAGES = {
    'garbage': lambda path: path.write_bytes(b'junk'),
    'empty': lambda path: path.write_bytes(b''),
    'cut short': lambda path: path.write_bytes(path.read_bytes()[:60]),
    'missing': lambda path: path.unlink(),
}


@pytest.mark.slow
@pytest.mark.parametrize('damage', DAMAGES)
@pytest.mark.parametrize('workers', [0, 1])
def test_damaged_image_is_named(damage, workers, config, sentence, drawn, tmp_path, monkeypatch):
    root = shutil.copytree(drawn, tmp_path / 'data')
    DAMAGES[damage](root / 'leftImg8bit' / 'train' / 'demo' / '00003_leftImg8bit.png')
    monkeypatch.setenv('MIRRORLA_DEMO_DATA', str(root))
    task = 'segmentation' if damage == 'cut short' else 'detection'
    options = ('--cfg-options', f'train_dataloader.num_workers={workers}')
    line = sentence('train', config(task), *options)
    assert re.search(
        r'error: \S*/00003_leftImg8bit\.png (is no readable|is empty|is cut|does not)', line
    )


@pytest.mark.slow
def test_damaged_label_is_named(config, sentence, drawn, tmp_path, monkeypatch):
    root = shutil.copytree(drawn, tmp_path / 'data')
    (root / 'gtFine/train/demo/00003_gtFine_labelTrainIds.png').write_bytes(b'junk')
    monkeypatch.setenv('MIRRORLA_DEMO_DATA', str(root))
    assert '00003_gtFine_labelTrainIds.png is no readable image' in sentence(
        'train', config('segmentation')
    )


@pytest.mark.slow
def test_checkpoints_that_cannot_serve(config, run, sentence, tmp_path):
    path, other = config('segmentation'), config('detection')
    run('train', path, '--work-dir', 'w', '--cfg-options', 'train_cfg.max_epochs=1')
    good = tmp_path / 'w' / 'epoch_1.pth'
    assert 'nowhere.pth does not exist' in sentence('test', path, 'nowhere.pth')
    assert 'nowhere.pth does not exist' in sentence('train', path, '--resume', 'nowhere.pth')
    assert 'epoch_1.pth is of another model' in sentence('test', other, good)
    assert 'epoch_1.pth is of another model' in sentence('train', other, '--resume', good)
    classes = ('--cfg-options', 'model.decode_head.num_classes=9')
    assert 'decode_head' in sentence('test', path, good, *classes)
    (tmp_path / 'cut.pth').write_bytes(good.read_bytes()[:5000])
    assert 'cut.pth cannot be read' in sentence('test', path, 'cut.pth')
    weights = load_checkpoint_file(good)['state_dict']
    torch.save({'state_dict': weights}, tmp_path / 'weights.pth')
    run('test', path, 'weights.pth', '--work-dir', 'w')
    assert 'no training state' in sentence('train', path, '--resume', 'weights.pth')
    torch.save(
        {'state_dict': weights, 'x': Call(os.mkdir, str(tmp_path / 'ran'))},
        tmp_path / 'hostile.pth',
    )
    for command in (('test', path, 'hostile.pth'), ('train', path, '--resume', 'hostile.pth')):
        assert 'hostile.pth was refused' in sentence(*command)
    assert not (tmp_path / 'ran').exists()


def test_defects_keep_their_traceback(config, run, monkeypatch):
    def defect(self):
        raise ValueError('a defect')

    monkeypatch.setattr(Runner, 'train', defect)
    with pytest.raises(ValueError, match='a defect'):
        run('train', config('segmentation'))


def test_traceback_on_request(run, monkeypatch):
    monkeypatch.setenv('MIRRORLA_DEBUG', '1')
    with pytest.raises(Exception, match='does not exist'):
        run('train', 'nowhere.py')


# --- Other processes ------------------------------------------------------------------------------


def environment(**more: str) -> dict:
    folder = str(Path(sys.executable).parent)
    return {
        **os.environ,
        'PYTHONPATH': str(REPOSITORY),
        'PATH': f'{folder}{os.pathsep}{os.environ["PATH"]}',
        'OMP_NUM_THREADS': '1',
        **more,
    }


def finish(command: list, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=600, **kwargs
    )


# A score that every change of the model changes.
MEAN_LOGIT = """
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS


@METRICS.register_module(force=True)
class MeanLogit(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [s['seg_logits']['data'].double().abs().mean().item() for s in data_samples]

    def compute_metrics(self, results):
        return {'mean_logit': sum(results) / len(results)}
"""
SCORED_BY_MEAN_LOGIT = """
norm_cfg = dict(type='SyncBN')
custom_imports['imports'].append('mean_logit')
val_evaluator = dict(_delete_=True, type='MeanLogit')
test_evaluator = dict(_delete_=True, type='MeanLogit')
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')
def test_two_processes_without_a_gpu(config, run, tmp_path, monkeypatch):
    (tmp_path / 'mean_logit.py').write_text(MEAN_LOGIT)
    monkeypatch.syspath_prepend(tmp_path)
    path = config('segmentation', SCORED_BY_MEAN_LOGIT)
    done = finish(
        [REPOSITORY / 'tools/dist_train.sh', path, 2, '--work-dir', tmp_path / 'w'],
        env=environment(PORT='29517', PYTHONPATH=f'{REPOSITORY}{os.pathsep}{tmp_path}'),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Two epochs of 8 images, in batches of 4 on each of two processes.
    assert load_checkpoint_file(tmp_path / 'w' / 'epoch_2.pth')['meta']['iter'] == 2
    # The score is that of the file, although each process normalised by its own batches.
    run('test', path, 'w/epoch_2.pth', '--work-dir', 'w')
    validated, tested = metrics(tmp_path / 'w')
    assert tested['mean_logit'] == pytest.approx(validated['mean_logit'], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_tools_of_mmdet_and_mmseg_load_and_refuse(task, config, run, tmp_path):
    path = config(task)
    run('train', path, '--work-dir', 'w', '--cfg-options', 'train_cfg.max_epochs=1')
    torch.save(
        {'state_dict': {}, 'x': Call(os.mkdir, str(tmp_path / 'ran'))}, tmp_path / 'hostile.pth'
    )
    package = {'detection': 'mmdet', 'segmentation': 'mmseg'}[task]
    code = f"""
import importlib.util, pathlib, runpy, sys
tools = pathlib.Path(importlib.util.find_spec('{package}').origin).parent / '.mim' / 'tools'
def run(tool, *args):
    sys.argv = [tool, {path!r}, *args, '--work-dir', 'w']
    runpy.run_path(str(tools / tool), run_name='__main__')
run('test.py', 'w/epoch_1.pth')
run('train.py', '--resume')
from {package}.apis import {'init_detector' if task == 'detection' else 'init_model'} as init
init({path!r}, 'w/epoch_2.pth', device='cpu')
try:
    run('test.py', 'hostile.pth')
except Exception as error:
    assert type(error).__name__ == 'UnsafeCheckpointError', error
else:
    raise SystemExit('loaded a hostile file')
print('all done')
"""
    done = finish([sys.executable, '-c', code], cwd=tmp_path, env=environment())
    assert done.stdout.endswith('all done\n'), done.stderr[-3000:]
    assert not (tmp_path / 'ran').exists()
