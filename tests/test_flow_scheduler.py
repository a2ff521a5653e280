"""diffusers' scheduler of flow matching: its loop and ours make the same images of one UNet2DModel."""

import pytest
import torch

import patch_diffusion as pd
from needs import need
from patch_diffusion.interop.flow_scheduler import flow_of, flow_scheduler
from patch_diffusion.sampling.generate import noise_of

diffusers = need("diffusers", "hub")


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "num"), [(1.0, 1000), (3.0, 500)])
def test_a_model_of_diffusers_is_sampled_as_by_diffusers(shift, num):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=num, shift=shift)
    scheduler.set_timesteps(6)
    images = noise_of([3], (1, 8, 8), torch.device("cpu"), None).float()
    with torch.no_grad():
        for time in scheduler.timesteps:
            images = scheduler.step(unet(images, time).sample, time, images).prev_sample

    process, scale, sampling = flow_of({**scheduler.config, "_class_name": "FlowMatchEulerDiscreteScheduler"})
    network = pd.DiffusersNetwork(unet, coords=False, timestep_scale=scale)
    model = pd.Denoiser(network, coords=False, process=process, resolution=(8, 8))
    torch.testing.assert_close(process.time(sampling.settled(model, 6).sigmas(model)).float(), scheduler.sigmas)
    steps = []
    list(pd.generate(model, [3], sampling, steps=6, callback=steps.append))
    torch.testing.assert_close(steps[-1].denoised.float(), images, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "DDPMScheduler"}, "a scheduler of flow matching is a Flow.*, not a DDPMScheduler"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "runs from noise to images"),
    ],
)
def test_other_schedulers_are_refused(config, message):
    with pytest.raises(pd.InputError, match=message):
        flow_of(config)


def test_only_what_their_scheduler_samples_gets_it():
    euler = {"solver": "euler", "schedule": "flow"}

    def config(settings, **options):
        return flow_scheduler(pd.Denoiser(lambda x, c_noise, labels: x, **{"process": pd.Flow(), **options}), settings)

    found = config(euler)
    assert found == {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
    assert flow_of(found).timestep_scale == 1.0
    assert config({**euler, "solver": "heun"}) is None and config({**euler, "schedule": "karras"}) is None
    assert config(euler, sigma_min=0.1) is None and config(euler, process=pd.EDM()) is None
