"""Networks of diffusers pipelines: their denoised images are those of their schedulers, and what is no such network."""

import json
import math

import pytest
import torch

import patch_diffusion as pd
from needs import need
from patch_diffusion.denoise.networks.timestep_unet import TimestepUNet, noise_levels
from patch_diffusion.interop.diffusers_folder import read_pipeline
from patch_diffusion.training.optimizing.parts import parts_of

pytestmark = pytest.mark.slow
diffusers = need("diffusers", "hub")

TINY = {
    "sample_size": 8,
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
SCHEDULERS = [
    ("epsilon", {"beta_schedule": "linear", "clip_sample": True}),
    ("v_prediction", {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
    ("sample", {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False}),
    ("v_prediction", {"beta_schedule": "linear", "rescale_betas_zero_snr": True}),
    ("epsilon", {"trained_betas": [0.01 * step for step in range(1, 30)], "num_train_timesteps": 29}),
]


def save(folder, scheduler=None, **options):
    """Save a pipeline of random weights; return its network."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**{**TINY, **options}).eval()
    scheduler = diffusers.DDIMScheduler() if scheduler is None else scheduler
    with torch.no_grad():
        for weight in unet.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    diffusers.DDIMPipeline(unet, scheduler).save_pretrained(folder)
    return unet


def denoised(model, noisy, sigma, labels=None):
    with torch.no_grad():
        return model(noisy, sigma, pd.coordinate_grid(*noisy.shape[2:]).to(noisy), labels)


@pytest.mark.parametrize(("prediction", "settings"), SCHEDULERS)
def test_denoised_images_are_those_of_the_scheduler(tmp_path, prediction, settings):
    exact = {"clip_sample": False, "thresholding": False, "set_alpha_to_one": False}
    stored = diffusers.DDIMScheduler(prediction_type=prediction, **settings)
    unet = save(tmp_path / "pipeline", stored).double()
    scheduler = diffusers.DDIMScheduler.from_config(stored.config, **exact)
    model, rows = read_pipeline(tmp_path / "pipeline")
    num = scheduler.config.num_train_timesteps
    scheduler.set_timesteps(num)
    signal = scheduler.alphas_cumprod.double()
    times = [time for time in (0, 1, num // 3, num // 2, num - 2, num - 1) if signal[time] > 0]
    scheduler.alphas_cumprod = signal
    x = torch.randn(1, 3, 8, 12).double()
    for time in times:
        sigma = (1 / signal[time] - 1).sqrt()
        with torch.no_grad():
            expected = scheduler.step(unet(x, time).sample, time, x).pred_original_sample
        found = denoised(model.double(), x * (1 + sigma**2).sqrt(), sigma)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    ends = [(1 / signal[time] - 1).sqrt().item() for time in (0, -1)]
    assert (model.sigma_min, model.sigma_max) == pytest.approx((ends[0], min(ends[1], 80)))
    notes = {row.part: row for row in rows}
    assert ("clip_sample" in notes) == stored.config.clip_sample and notes["prediction"].change == prediction


def test_zero_terminal_snr_at_its_end(tmp_path):
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    unet = save(tmp_path / "pipeline", scheduler)
    model = read_pipeline(tmp_path / "pipeline").model
    noise = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(denoised(model, noise * 1e8, 1e8), -unet(noise, 999).sample, rtol=1e-4, atol=1e-5)


def test_noise_levels_are_those_of_the_scheduler():
    for schedule in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        for zero in (False, True):
            settings = {"beta_schedule": schedule, "rescale_betas_zero_snr": zero}
            expected = (1 / diffusers.DDIMScheduler(**settings).alphas_cumprod.double() - 1).sqrt()[:-1]
            torch.testing.assert_close(
                torch.tensor(noise_levels(**settings)[:-1]).double(), expected, rtol=1e-6, atol=0
            )
    with pytest.raises(ValueError, match="sigmoid is none of linear, scaled_linear"):
        noise_levels(beta_schedule="sigmoid")
    with pytest.raises(ValueError, match="do not rise"):
        noise_levels(trained_betas=[0.1, 0.0, 0.0])


def test_timesteps_are_real_numbers_between_whole_ones(tmp_path):
    save(tmp_path / "pipeline")
    network = read_pipeline(tmp_path / "pipeline").model.module
    assert isinstance(network, TimestepUNet)
    logs = [math.log(sigma) for sigma in noise_levels()]
    asked = torch.tensor([logs[0] - 3, logs[7], (3 * logs[7] + logs[8]) / 4, logs[999] + 1])
    assert network.timestep(asked).tolist() == pytest.approx([0, 7, 7.25, 999], abs=1e-4)
    rounded = torch.tensor(noise_levels()).log() / 4  # as the denoiser tells them
    assert network.timestep(4 * rounded).tolist() == list(range(1000))


def test_learned_variance_and_classes(tmp_path):
    unet = save(tmp_path / "pipeline", out_channels=6, num_class_embeds=3)
    model, rows = read_pipeline(tmp_path / "pipeline" / "unet")
    assert (model.image_channels, model.num_classes, model.resolution) == (3, 3, (8, 8))
    assert [row.part for row in rows] == ["prediction", "timesteps", "variance", "clip_sample"]
    x, time, labels = torch.randn(3, 3, 8, 8), 400, torch.tensor([2, 0, 1])
    sigma = noise_levels()[time]
    with torch.no_grad():
        noise = unet(x, time, labels).sample[:, :3]
    noisy = x * (1 + sigma**2) ** 0.5
    torch.testing.assert_close(denoised(model, noisy, sigma, labels), noisy - sigma * noise, rtol=1e-4, atol=1e-4)
    rows = unet.class_embedding.weight
    torch.testing.assert_close(model.module.state_dict()["unet.class_embedding.weight"][3], rows.mean(dim=0))


def test_all_in_one_folder(tmp_path):
    save(tmp_path / "a")
    for part in ("unet", "scheduler"):
        for file in (tmp_path / "a" / part).iterdir():
            file.rename(tmp_path / "a" / file.name)
        (tmp_path / "a" / part).rmdir()
    assert read_pipeline(tmp_path / "a").model.image_channels == 3


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            "unet/config.json",
            {"_class_name": "UNet2DConditionModel"},
            "has a UNet2DConditionModel: a model to train on",
        ),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "prediction_type flow is none of epsilon"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "beta_schedule sigmoid is none of"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "this is prediction_type epsilon"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}, "num_train_timesteps is at most 100,000"),
        ("unet/config.json", {"time_embedding_type": "fourier"}, "cannot be read as a UNet2DModel|embeds no real"),
        ("unet/config.json", {"block_out_channels": [8, 12]}, "cannot be read as a UNet2DModel"),
    ],
)
def test_what_is_not_supported_is_refused(tmp_path, file, values, message):
    save(tmp_path / "a")
    change(tmp_path / "a" / file, **values)
    with pytest.raises(pd.InputError, match=message):
        read_pipeline(tmp_path / "a")


def test_a_folder_without_a_network_or_scheduler_is_refused(tmp_path):
    save(tmp_path / "a", in_channels=6)
    with pytest.raises(pd.InputError, match="takes 6 channels and gives 3"):
        read_pipeline(tmp_path / "a")
    (tmp_path / "a" / "scheduler" / "scheduler_config.json").write_text(
        '{"_class_name": "FlowMatchEulerDiscreteScheduler"}'
    )
    with pytest.raises(pd.InputError, match="FlowMatchEulerDiscreteScheduler'? has no beta_schedule"):
        read_pipeline(tmp_path / "a")
    (tmp_path / "a" / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(pd.InputError, match="has no scheduler"):
        read_pipeline(tmp_path / "a")
    with pytest.raises(pd.InputError, match="holds no network of a pipeline"):
        read_pipeline(tmp_path)


def test_parts_of_a_network_to_train_alone():
    network = pd.DiffusersNetwork(diffusers.UNet2DModel(**{**TINY, "in_channels": 5}))
    names = {id(weight): name for name, weight in network.named_parameters()}
    found = {part: {names[id(weight)] for weight in weights} for part, weights in parts_of(network).items()}
    assert found["first"] == {"unet.conv_in.weight", "unet.conv_in.bias"}
    assert (
        "unet.mid_block.attentions.0.to_q.weight" in found["attention"] and "unet.conv_norm_out.bias" in found["norms"]
    )
    assert set(found) == {"attention", "norms", "embeddings", "first", "last", "encoder", "middle", "decoder"}
