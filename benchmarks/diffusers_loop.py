"""Steps a second, against a plain training loop of diffusers' `UNet2DModel` with as many parameters.

    python benchmarks/diffusers_loop.py [--preset small] [--side 64] [--steps 40] [--rounds 5] [--out FILE.json]

Processes take turns. The loop is what a tutorial of diffusers shows: the image and noise of a step, `DDPMScheduler`,
mean squared error, AdamW, torch's own threads, data on the device. Ours is `Trainer.fit` of a preset: once on whole
images only, where a step does the same work in both, and once on patches as the preset has them. All three in fp32 and
bf16.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import circumstances

import patch_diffusion as pd
from patch_diffusion.devices import choose_device
from patch_diffusion.runs.model import build_network
from patch_diffusion.training.build import build_trainer

UNCOUNTED = 10  # first steps, in which memory is found and kernels are chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="small", choices=pd.PRESETS)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--alone", choices=ARMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(ARMS[arguments.alone](arguments.preset, arguments.side, arguments.steps)))
        return
    rounds: list[dict[str, dict[str, float]]] = []
    for index in range(arguments.rounds):
        order = list(ARMS)[index % len(ARMS) :] + list(ARMS)[: index % len(ARMS)]
        rounds.append({arm: run_alone(arm) for arm in order})
    arms = {
        arm: {
            "parameters": rounds[0][arm]["parameters"],
            "steps_per_second": median(row[arm]["steps"] for row in rounds),
            "images_per_second": median(row[arm]["images"] for row in rounds),
            "steps_of_loop": median(row[arm]["steps"] / row["diffusers"]["steps"] for row in rounds),
            "images_of_loop": median(row[arm]["images"] / row["diffusers"]["images"] for row in rounds),
        }
        for arm in ARMS
    }
    for arm, row in arms.items():
        print(
            f"{arm:>15}: {row['parameters']:,} parameters, {row['steps_per_second']:.2f} steps and "
            f"{row['images_per_second']:.1f} images a second; {row['steps_of_loop']:.2f} and "
            f"{row['images_of_loop']:.2f} times the loop's"
        )
    if arguments.out:
        settings = {name: getattr(arguments, name) for name in ("preset", "side", "steps", "rounds")}
        arguments.out.write_text(json.dumps({**circumstances(), "settings": settings, "arms": arms}, indent=1) + "\n")


def run_alone(arm: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--alone", arm]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def pictures(side: int) -> torch.Tensor:
    return torch.randint(0, 256, (1024, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def ours(preset: str, side: int, steps: int, precision: Any = "fp32", **patches: Any) -> dict[str, float]:
    config = pd.PRESETS[preset]
    config = replace(config, patches=replace(config.patches, **patches), samples=0, checkpoints=1)
    config = replace(config, engine=replace(config.engine, precision=precision))
    config = replace(config, minutes=None, images=None, log_every=UNCOUNTED)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(config, pd.ImageSet(pictures(side)), Path(folder) / "run", show=False)
        trainer.fit(steps=UNCOUNTED + steps)
        lines = [json.loads(line) for line in trainer.run.log_file.read_text().splitlines()]
        counted = [line for line in lines if "loss" in line]
        first, last = counted[0], counted[-1]
        seconds = last["seconds"] - first["seconds"]
        return {
            "parameters": trainer.facts.parameters,
            "steps": (last["step"] - first["step"]) / seconds,
            "images": (last["images"] - first["images"]) / seconds,
        }


def diffusers_loop(preset: str, side: int, steps: int, bf16: bool = False) -> dict[str, float]:
    from diffusers import DDPMScheduler  # pyright: ignore[reportPrivateImportUsage]

    config = pd.PRESETS[preset]
    assert isinstance(config.batch, int)
    device = choose_device()
    model = unet_of(side, parameters(preset)).to(device)
    scheduler, optimizer = DDPMScheduler(), torch.optim.AdamW(model.parameters(), lr=1e-4)
    data = pictures(side).to(device)
    began = 0.0
    for step in range(UNCOUNTED + steps):
        if step == UNCOUNTED:
            catch_up(device)
            began = time.perf_counter()
        chosen = torch.randint(0, len(data), (config.batch,), device=device)
        clean = data[chosen].float() / 127.5 - 1
        noise = torch.randn_like(clean)
        levels = torch.randint(0, 1000, (len(clean),), device=device)
        noisy = scheduler.add_noise(clean, noise, levels)  # pyright: ignore[reportArgumentType]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            guess = model(noisy, levels).sample
        torch.nn.functional.mse_loss(guess.float(), noise).backward()
        optimizer.step()
        optimizer.zero_grad()
    catch_up(device)
    per_second = steps / (time.perf_counter() - began)
    num = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": num, "steps": per_second, "images": config.batch * per_second}


def catch_up(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def parameters(preset: str) -> int:
    network = build_network(pd.PRESETS[preset].network, 3, 0, coords=True)
    return sum(parameter.numel() for parameter in network.parameters())


def unet_of(side: int, wanted: int) -> torch.nn.Module:
    """Of diffusers, with three levels as ours and attention on the last, in the width that comes nearest in size."""
    from diffusers import UNet2DModel  # pyright: ignore[reportPrivateImportUsage]

    def make(width: int) -> torch.nn.Module:
        return UNet2DModel(
            sample_size=side,
            layers_per_block=1,
            block_out_channels=(width, 2 * width, 4 * width),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
        )

    def size(width: int) -> int:
        return sum(parameter.numel() for parameter in make(width).parameters())

    return make(min(range(8, 129, 4), key=lambda width: abs(size(width) - wanted)))


ARMS: dict[str, Callable[[str, int, int], dict[str, float]]] = {
    "diffusers": diffusers_loop,
    "whole": lambda preset, side, steps: ours(preset, side, steps, whole=1.0),
    "patches": ours,
    "diffusers, bf16": lambda preset, side, steps: diffusers_loop(preset, side, steps, bf16=True),
    "whole, bf16": lambda preset, side, steps: ours(preset, side, steps, "bf16", whole=1.0),
    "patches, bf16": lambda preset, side, steps: ours(preset, side, steps, "bf16"),
}

if __name__ == "__main__":
    main()
