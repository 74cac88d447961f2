"""Folders, pairs and what is done to them."""

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from mirrorla_mm.engine.bad_data import check_loading
from mirrorla_mm.engine.data import DataError
from mirrorla_mm.registry import TRANSFORMS
from mirrorla_mm.restoration.datasets import SuperResolutionDataset
from mirrorla_mm.restoration.inference import truths_of
from mirrorla_mm.restoration.resize import downscale
from mirrorla_mm.restoration.transforms import (
    LoadImagePair,
    PackRestorationInputs,
    PairedCenterCrop,
    PairedRandomCrop,
    PairedRandomFlip,
)
from tests.test_restoration.toy import draw, write_benchmark

LR = 'LR_bicubic/X{scale}'


@pytest.fixture
def benchmark(tmp_path):
    return write_benchmark(tmp_path / 'Drawn', [(25, 32), (40, 36)])


def pair(scale=2, seed=0):
    gt = draw(40, 52, seed)
    return dict(gt=gt, img=downscale(gt, scale), scale=scale, gt_path='x.png')


def test_partners_are_found_with_and_without_the_scale_in_the_name(benchmark):
    data = SuperResolutionDataset(2, str(benchmark), lr_dir=LR)
    assert [info['img_path'][-7:] for info in map(data.get_data_info, range(2))] == [
        '0x2.png',
        '1x2.png',
    ]
    (benchmark / 'HR').rename(benchmark / 'GTmod12')
    (benchmark / 'LR_bicubic/X2').rename(benchmark / 'LRbicx2')
    for number in range(2):
        (benchmark / f'LRbicx2/{number}x2.png').rename(benchmark / f'LRbicx2/{number}.png')
    other = SuperResolutionDataset(2, str(benchmark), gt_dir='GTmod12', lr_dir='LRbicx{scale}')
    assert [info['img_path'][-5:] for info in map(other.get_data_info, range(2))] == [
        '0.png',
        '1.png',
    ]


def test_several_benchmarks_are_one_data_set_that_tells_them_apart(benchmark):
    write_benchmark(benchmark.parent / 'Other', [(24, 24)])
    data = SuperResolutionDataset(2, str(benchmark.parent), lr_dir=LR, sets=['Other', 'Drawn'])
    names = [data.get_data_info(i)['dataset'] for i in range(len(data))]
    assert names == ['Other', 'Drawn', 'Drawn']
    assert len(SuperResolutionDataset(2, str(benchmark.parent), sets='Drawn')) == 2


def test_benchmarks_behind_links_keep_the_names_of_the_links(benchmark):
    for name in ('Set5', 'Set14'):
        (benchmark.parent / 'store' / name).mkdir(parents=True)
        write_benchmark(benchmark.parent / 'store' / name / 'original', [(24, 24)])
        link = benchmark.parent / name
        link.symlink_to(benchmark.parent / 'store' / name / 'original')
    data = SuperResolutionDataset(2, str(benchmark.parent), lr_dir=LR, sets=['Set5', 'Set14'])
    assert [data.get_data_info(i)['dataset'] for i in range(2)] == ['Set5', 'Set14']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(gt_dir='None'), 'None does not exist'),
        (dict(sets=['Set14']), 'Set14/HR does not exist'),
        (dict(lr_dir='empty'), 'holds no'),
        (dict(scale=3, lr_dir='LR_bicubic/X2'), '0.png has no low-resolution partner'),
    ],
)
def test_missing_images_are_named(benchmark, options, message):
    (benchmark / 'empty').mkdir()
    with pytest.raises(DataError, match=message):
        SuperResolutionDataset(**{'scale': 2, 'data_root': str(benchmark), **options})


def test_small_images_are_left_out_where_that_is_asked_for(benchmark):
    data = SuperResolutionDataset(2, str(benchmark), filter_cfg=dict(min_size=30))
    assert [data.get_data_info(i)['gt_path'][-5:] for i in range(len(data))] == ['1.png']


def test_unreadable_images_stay_for_the_policy_of_bad_data_to_judge(benchmark):
    (benchmark / 'HR/0.png').write_bytes(b'damaged')
    loader = dict(
        type='mirrorla_mm.CheckedLoading', policy='skip', transform=dict(type='LoadImageFromFile')
    )
    pipeline = [dict(type='mirrorla_mm.LoadImagePair', loader=loader)]
    options = dict(filter_cfg=dict(min_size=30), pipeline=pipeline)
    data = SuperResolutionDataset(2, str(benchmark), **options)
    assert [data.prepare_data(i) is None for i in range(len(data))] == [True, False]


def test_ground_truths_have_any_suffix_in_any_case(tmp_path):
    files = [tmp_path / 'in' / f'{name}.png' for name in ('ax2', 'b')]
    (tmp_path / 'hr').mkdir()
    expected = [tmp_path / 'hr' / name for name in ('a.PNG', 'b.webp')]
    for path in expected:
        path.touch()
    assert truths_of(files, tmp_path / 'hr', 2) == expected
    with pytest.raises(DataError, match='ax2.png has no ground truth'):
        truths_of(files, tmp_path / 'hr', 3)


def test_two_images_of_one_name_are_refused(benchmark):
    cv2.imwrite(str(benchmark / 'HR/0.bmp'), draw(24, 24))
    with pytest.raises(DataError, match='have one name but for the suffix'):
        SuperResolutionDataset(2, str(benchmark))


def test_pairs_are_loaded_and_made_the_same(benchmark):
    for index in range(2):
        stored, made = (
            LoadImagePair()(
                SuperResolutionDataset(2, str(benchmark), lr_dir=d).get_data_info(index)
            )
            for d in (LR, None)
        )
        assert np.array_equal(stored['img'], made['img'])
        assert stored['gt'].shape[:2] == tuple(2 * n for n in stored['img'].shape[:2])
        assert stored['gt'].shape[0] in (24, 40)


def test_grey_rgba_and_16_bit_images_become_8_bit_colour(tmp_path):
    image = draw(24, 28)
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    variants = dict(
        grey=grey,
        rgba=np.dstack((image, grey)),
        deep=image.astype(np.uint16) * 257,
    )
    for name, variant in variants.items():
        path = tmp_path / f'{name}.png'
        cv2.imwrite(str(path), variant)
        loaded = LoadImagePair()(dict(gt_path=str(path), scale=2))['gt']
        expected = np.repeat(grey[..., None], 3, 2) if name == 'grey' else image
        assert loaded.dtype == np.uint8 and np.array_equal(loaded, expected), name


@pytest.mark.parametrize('kind', ['text', 'cut', 'size'])
def test_files_that_cannot_be_trusted_are_named(benchmark, kind):
    path = benchmark / 'HR/0.png'
    if kind == 'text':
        path.write_text('no image')
    elif kind == 'cut':
        path.write_bytes(path.read_bytes()[:-30])
    else:
        cv2.imwrite(str(path), draw(30, 32))
    info = SuperResolutionDataset(2, str(benchmark), lr_dir=LR).get_data_info(0)
    with pytest.raises(DataError, match='0.png'):
        LoadImagePair()(info)
    if kind == 'size':
        return
    pipeline = [dict(type='mirrorla_mm.LoadImagePair')]
    cfg = Config(dict(train_dataloader=dict(dataset=dict(pipeline=pipeline)), work_dir='.'))
    check_loading(cfg, 'skip')
    transform = cfg.train_dataloader.dataset.pipeline[0]
    transform.loader.log = str(benchmark / 'log')
    assert TRANSFORMS.build(transform)(info) is None
    assert '0.png' in (benchmark / 'log').read_text()


def test_crops_of_both_show_the_same():
    seen = set()
    for _ in range(20):
        sample = PairedRandomCrop(8)(pair())
        assert sample['img'].shape == (8, 8, 3) and sample['gt'].shape == (16, 16, 3)
        # Away from the border, shrinking the crop gives the crop of the shrunk.
        made = downscale(np.ascontiguousarray(sample['gt']), 2)
        assert np.array_equal(made[3:-3, 3:-3], sample['img'][3:-3, 3:-3])
        seen.add(sample['img'].tobytes())
    assert len(seen) > 10
    with pytest.raises(DataError, match='x.png has 26x20 pixels'):
        PairedRandomCrop(21)(pair())


def test_the_middle_of_both_is_kept():
    whole = pair()
    sample = PairedCenterCrop((8, 40))(dict(whole))
    assert np.array_equal(sample['img'], whole['img'][6:14]) and sample['img_shape'] == (8, 26)
    assert np.array_equal(sample['gt'], whole['gt'][12:28])


def test_flips_are_the_8_of_a_square_and_the_same_for_both():
    seen = set()
    img = draw(10, 13)
    full = dict(img=img, gt=img.repeat(2, 0).repeat(2, 1))
    for _ in range(100):
        sample = PairedRandomFlip()(dict(full))
        assert np.array_equal(sample['gt'][::2, ::2], sample['img'])
        seen.add(sample['gt'].tobytes())
    assert len(seen) == 8
    shapes = {PairedRandomFlip(transpose=False)(dict(full))['gt'].shape for _ in range(20)}
    assert shapes == {(20, 26, 3)}
    never, always = (PairedRandomFlip(prob)(dict(full)) for prob in (0, 1))
    assert np.array_equal(never['img'], img)
    assert np.array_equal(always['img'], img[::-1, ::-1].swapaxes(0, 1))


def test_packed_tensors_are_rgb():
    sample = pair()
    packed = PackRestorationInputs()(sample)
    assert packed['inputs'].shape == (3, 20, 26)
    assert packed['inputs'][0].numpy().tolist() == sample['img'][..., 2].tolist()
    assert packed['data_samples'].gt_img[2].numpy().tolist() == sample['gt'][..., 0].tolist()
    assert packed['data_samples'].scale == 2
