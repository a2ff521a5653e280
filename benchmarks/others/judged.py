"""A training that is followed by the clock, and judged and sampled as a denoiser: for any network and environment.

It needs only torch and numpy. The job is a JSON file: ``minutes``, ``moments``, ``judges`` (an .npz with clean images
in [-1, 1] and their noise at each level), ``samples``, ``seed``, ``batch``, ``result`` (the .npz to write).
"""

import json
import math
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
"""From images plus noise of a level sigma to the images, in [-1, 1]."""

STEPS, RHO, LOWEST, HIGHEST = 18, 7.0, 0.002, 80.0  # of EDM's deterministic sampler: 35 evaluations of the network


def follow(job: dict[str, Any], step: Callable[[], None], denoise: Denoise, facts: dict[str, Any]) -> None:
    """Take steps until the minutes are over, judge at even moments with the clock stopped, then sample; write all."""
    seconds, steps, rows = 0.0, 0, []
    for moment in range(1, job["moments"] + 1):
        while seconds < 60 * job["minutes"] * moment / job["moments"]:
            began = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds += time.perf_counter() - began
            steps += 1
        rows.append({"seconds": seconds, "steps": steps, **judged(denoise, job)})
        print(f"{facts['name']}: {seconds:.0f} s, {steps} steps", flush=True)
    write(job, rows, sampled(denoise, job), facts)


def write(job: dict[str, Any], rows: list[dict[str, Any]], samples: np.ndarray, facts: dict[str, Any]) -> None:
    """Write what was measured: squared errors (moments, levels, images), and the samples (n, h, w, c) of the end."""
    columns: dict[str, Any] = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    facts = {
        **facts,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "convolution_ms": convolution_ms(),
    }
    file = Path(job["result"])
    np.savez(file.with_suffix(".part.npz"), samples=samples, facts=json.dumps(facts), **columns)
    file.with_suffix(".part.npz").replace(file)  # so that a file that is there is complete


def judged(denoise: Denoise, job: dict[str, Any]) -> dict[str, np.ndarray]:
    """The mean squared error of each image at each level (levels, images), as it is and clipped to [-1, 1]."""
    given = np.load(job["judges"])
    clean = torch.from_numpy(given["clean"])
    found: dict[str, list[np.ndarray]] = {"squared": [], "clipped": []}
    for sigma, noise in zip(given["sigmas"].tolist(), given["noise"], strict=True):
        noisy = clean + sigma * torch.from_numpy(noise)
        with torch.inference_mode():
            guess = torch.cat([denoise(part, sigma) for part in noisy.split(job["batch"])]).float()
        for name, each in (("squared", guess), ("clipped", guess.clamp(-1, 1))):
            found[name].append((each - clean).square().flatten(1).mean(1).numpy())
    return {name: np.stack(each) for name, each in found.items()}


def sampled(denoise: Denoise, job: dict[str, Any]) -> np.ndarray:
    """Samples (n, h, w, c) of 8 bits by Heun's method (EDM, arXiv 2206.00364, algorithm 1), the same for all."""
    shape = np.load(job["judges"])["clean"].shape[1:]
    ramp = np.linspace(HIGHEST ** (1 / RHO), LOWEST ** (1 / RHO), STEPS) ** RHO
    sigmas = [*ramp.tolist(), 0.0]
    parts = []
    for first in range(0, job["samples"], job["batch"]):
        num = min(job["batch"], job["samples"] - first)
        images = sigmas[0] * torch.randn(num, *shape, generator=torch.Generator().manual_seed(first))
        with torch.inference_mode():
            for high, low in pairwise(sigmas):
                slope = (images - denoise(images, high)) / high
                ahead = images + (low - high) * slope
                if low:
                    slope = (slope + (ahead - denoise(ahead, low)) / low) / 2
                    ahead = images + (low - high) * slope
                images = ahead
        parts.append(((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def denoiser_of(predict: Callable[[Tensor, Tensor], Tensor], levels: Tensor, kind: str) -> Denoise:
    """Make a denoiser of a network that is told a time step and images of unit variance plus noise (DDPM).

    Args:
        predict: from x_t = (x + sigma n) / sqrt(1 + sigma^2) and real-valued time steps to the network's output.
        levels: the noise level sigma of each time step, sqrt((1 - a) / a) where a is ``alphas_cumprod``. A level
            between two steps has the time between them, linearly in ln(sigma).
        kind: "noise", or "v" (arXiv 2202.00512), as the output is.
    """
    logs, times = levels.double().clamp(min=1e-12).log().numpy(), np.arange(len(levels))

    def denoise(noisy: Tensor, sigma: float) -> Tensor:
        time = float(np.interp(math.log(sigma), logs, times))
        scale = 1 / math.sqrt(1 + sigma**2)
        found = predict(scale * noisy, torch.full((len(noisy),), time))
        return noisy - sigma * found if kind == "noise" else scale * (scale * noisy - sigma * found)

    return denoise


def convolution_ms() -> float:
    """The milliseconds of one convolution, forward and backward: of two environments it tells whether torch differs."""
    images, weights = torch.randn(16, 64, 32, 32), torch.randn(64, 64, 3, 3, requires_grad=True)
    times = []
    for _ in range(12):
        began = time.perf_counter()
        torch.nn.functional.conv2d(images, weights, padding=1).sum().backward()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[2:])
