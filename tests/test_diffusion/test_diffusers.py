"""diffusers' DiT with our attentions, its schedulers beside our steps, and its VAE."""

import numpy as np
import pytest
import torch
from PIL import Image

diffusers = pytest.importorskip('diffusers', reason='optional extra: pip install diffusers')

from mirrorla_mm.diffusion import DDPM  # noqa: E402
from mirrorla_mm.diffusion.diffusers_dit import load, replace_attention  # noqa: E402
from mirrorla_mm.diffusion.vae import encode_folders, load_vae  # noqa: E402
from mirrorla_mm.engine.checkpoint import CheckpointError  # noqa: E402
from mirrorla_mm.engine.errors import UserError  # noqa: E402

MIRROR = dict(type='ReLUAttention', gate=True, lepe_kernel=5, reflection={})


def toy():
    torch.manual_seed(0)
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
        norm_num_groups=1,
    ).eval()


def arguments():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    return dict(hidden_states=x, timestep=torch.tensor([3, 700]), class_labels=torch.tensor([1, 9]))


@torch.no_grad()
def output(model):
    return model(**arguments()).sample


def test_softmax_changes_nothing():
    model = toy()
    before = output(model)
    after = output(replace_attention(model, dict(type='SoftmaxAttention')))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


def test_another_attention_changes_the_output_and_all_of_it_trains():
    model = toy()
    before = output(model)
    q = model.transformer_blocks[0].attn1.to_q.weight.clone()
    replace_attention(model, MIRROR)
    qkv = model.transformer_blocks[0].attn1.processor.attn.qkv.weight
    torch.testing.assert_close(qkv[:16], q)
    assert not torch.allclose(output(model), before)
    model.train()(**arguments()).sample.square().mean().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    assert idle == []


def test_weights_come_back_through_load_and_not_through_from_pretrained(tmp_path):
    model = replace_attention(toy(), MIRROR)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    expected = output(model)
    for source in (tmp_path, tmp_path / 'diffusion_pytorch_model.safetensors'):
        torch.testing.assert_close(output(load(replace_attention(toy(), MIRROR), source)), expected)
    # The trap that load is for: diffusers builds the model without the attention.
    plain = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    late = replace_attention(plain.eval(), MIRROR)
    assert not torch.allclose(output(late), expected, atol=1e-3)


def test_what_is_missing_is_said(tmp_path):
    toy().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match='is of another model.*processor.attn'):
        load(replace_attention(toy(), MIRROR), tmp_path)
    with pytest.raises(UserError, match='holds no diffusion_pytorch_model'):
        load(replace_attention(toy(), MIRROR), tmp_path.parent / tmp_path.name / '..')


def test_tokens_that_are_no_square_are_refused():
    processor = replace_attention(toy(), MIRROR).transformer_blocks[0].attn1.processor
    with pytest.raises(UserError, match='15 tokens are no square grid'):
        processor(None, torch.zeros(1, 15, 16))


def test_pipeline_draws_with_any_of_its_schedulers():
    model = replace_attention(toy(), MIRROR)
    for kind in ('DDIMScheduler', 'DPMSolverMultistepScheduler'):
        scheduler = getattr(diffusers, kind)(num_train_timesteps=1000)
        scheduler.set_timesteps(4)
        x = torch.randn(2, 4, 8, 8)
        for t in scheduler.timesteps:
            with torch.no_grad():
                out = model(x, t.expand(2), torch.tensor([0, 1])).sample
            x = scheduler.step(out, t, x).prev_sample
        assert torch.isfinite(x).all()


@pytest.mark.parametrize('sampler', ['ddim', 'ddpm'])
def test_steps_are_those_of_the_schedulers_where_these_keep_all_that_is_needed(sampler):
    """Theirs drops the learned variance; at its smallest they agree."""
    torch.manual_seed(0)
    process = DDPM(sampler=sampler, sampling_steps=1000)
    options = dict(num_train_timesteps=1000, beta_schedule='linear', clip_sample=False)
    if sampler == 'ddim':
        scheduler = diffusers.DDIMScheduler(**options, set_alpha_to_one=True)
    else:
        scheduler = diffusers.DDPMScheduler(**options, variance_type='fixed_small')
    scheduler.set_timesteps(1000)
    x, noise, extra = torch.randn(3, 2, 4, 8, 8)
    for step in (0, 1, 2, 500, 999):
        i = torch.full((2,), step)
        ours = process.step(x, i, noise, -torch.ones_like(x), (lambda: extra) if step else None)
        generator = torch.Generator().manual_seed(1)
        theirs = scheduler.step(noise, step, x, generator=generator).prev_sample
        if sampler == 'ddpm' and step:
            variance = scheduler._get_variance(step)
            drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
            theirs = theirs + variance**0.5 * (extra - drawn)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.fixture
def vae_folder(tmp_path):
    """An untrained VAE that halves the sides."""
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=('DownEncoderBlock2D',) * 2,
        up_block_types=('UpDecoderBlock2D',) * 2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
    )
    vae.save_pretrained(tmp_path / 'vae')
    return tmp_path / 'vae'


def test_vae_encodes_image_and_mirror_image_once(vae_folder, tmp_path):
    rng = np.random.default_rng(0)
    for name in ('a/1.png', 'b/2.png', 'b/3.png'):
        (tmp_path / 'images' / name).parent.mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / 'images' / name)
    vae = load_vae(vae_folder)
    assert encode_folders(vae, tmp_path / 'images', tmp_path / 'out', 16, 2) == 3
    assert encode_folders(vae, tmp_path / 'images', tmp_path / 'out', 16, 2) == 0
    views = np.load(tmp_path / 'out/b/3.png.npy')
    assert views.shape == (2, 2, 4, 8, 8) and views.dtype == np.float16
    assert (views[:, 1] > 0).all() and np.abs(views[0, 0] - views[1, 0]).max() > 0
    with torch.no_grad():
        assert vae.decode(torch.from_numpy(views[0, :1]).float()).sample.shape == (1, 3, 16, 16)


def test_a_folder_that_is_no_vae_is_refused_in_a_sentence(vae_folder):
    (weights,) = vae_folder.glob('*.safetensors')
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match='cannot be loaded'):
        load_vae(vae_folder)
