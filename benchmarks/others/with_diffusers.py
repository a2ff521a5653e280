"""The training of diffusers' example for unconditional images, at 64 x 64; see `against_others.py`.

Its settings are those of the first command in ``examples/unconditional_image_generation/README.md`` of
huggingface/diffusers: ``--resolution=64 --random_flip --train_batch_size=16 --use_ema --learning_rate=1e-4
--lr_warmup_steps=500 --mixed_precision=no``. Where that says nothing, they are the defaults of the example:
``UNet2DModel`` of six levels of 128 to 512 channels with attention in the fifth, as in the tutorial "Train a diffusion
model", ``DDPMScheduler`` of 1,000 steps, AdamW with betas 0.95 and 0.999 and a weight decay of 1e-6, gradients clipped
to 1, averages with a power of 3/4 up to 0.9999.

In place of ``--num_epochs=100`` the cosine falls to 0 within the minutes, of which the first steps tell how many steps
they are. The warm-up is a tenth of these, if that is less than 500.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel  # pyright: ignore[reportPrivateImportUsage]
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from judged import denoiser_of, follow

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TIMED = 3  # steps that tell how many there will be; they are taken with a network that is thrown away


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.manual_seed(job["seed"])
    images = torch.from_numpy(np.load(job["images"])["images"]).permute(0, 3, 1, 2)
    each = seconds_of_a_step(job, images)
    total = max(1, round(60 * job["minutes"] / each))
    network = network_of(job)
    optimizer = optimizer_of(network)
    warmup = min(500, total // 10)
    rate = get_cosine_schedule_with_warmup(optimizer, warmup, total)
    averages = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)
    noises = DDPMScheduler(num_train_timesteps=1000)
    batches = batches_of(images, job)

    def step() -> None:
        take_step(network, optimizer, noises, next(batches))
        rate.step()
        averages.step(network.parameters())

    average, copied = network_of(job).eval(), [-1]

    def predict(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        if copied[0] != averages.optimization_step:
            averages.copy_to(average.parameters())
            copied[0] = averages.optimization_step
        return average(noisy.to(DEVICE), times.to(DEVICE)).sample.cpu()

    alphas = noises.alphas_cumprod
    denoise = denoiser_of(predict, ((1 - alphas) / alphas).sqrt(), "noise")
    num = sum(each.numel() for each in network.parameters())
    facts = {"name": "diffusers", "parameters": num, "batch": job["batch_of_diffusers"]}
    follow(job, step, denoise, {**facts, "planned_steps": total, "warmup": warmup})


def network_of(job: dict[str, Any]) -> torch.nn.Module:
    network: torch.nn.Module = UNet2DModel(
        sample_size=job["side"],
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(128, 128, 256, 256, 512, 512),
        down_block_types=(*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
    )
    return torch.nn.Module.to(network, DEVICE)


def optimizer_of(network: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)


def batches_of(images: torch.Tensor, job: dict[str, Any]) -> Iterator[torch.Tensor]:
    """Batches of the images in random order, each mirrored or not, in [-1, 1]."""
    loader = torch.utils.data.DataLoader(images, batch_size=job["batch_of_diffusers"], shuffle=True)  # pyright: ignore[reportArgumentType]
    while True:
        for batch in loader:
            flipped = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch.flip(-1), batch)
            yield flipped.float() / 127.5 - 1


def take_step(
    network: torch.nn.Module, optimizer: torch.optim.Optimizer, noises: DDPMScheduler, clean: torch.Tensor
) -> None:
    clean = clean.to(DEVICE)
    noise = torch.randn_like(clean)
    times = torch.randint(0, 1000, (len(clean),), device=DEVICE)
    noisy = noises.add_noise(clean, noise, times)  # pyright: ignore[reportArgumentType]
    torch.nn.functional.mse_loss(network(noisy, times).sample, noise).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def seconds_of_a_step(job: dict[str, Any], images: torch.Tensor) -> float:
    network, batches, noises = network_of(job), batches_of(images, job), DDPMScheduler(num_train_timesteps=1000)
    optimizer = optimizer_of(network)
    take_step(network, optimizer, noises, next(batches))  # the first takes memory, and more time
    began = time.perf_counter()
    for _ in range(TIMED):
        take_step(network, optimizer, noises, next(batches))
    return (time.perf_counter() - began) / TIMED


if __name__ == "__main__":
    main()
