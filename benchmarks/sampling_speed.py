"""Images a second of each solver, and how much of the time the network takes.

    python benchmarks/sampling_speed.py [--preset small] [--side 64] [--steps 18] [--images 32] [--rounds 5]
        [--out FILE.json]

A network of a preset with random weights, which take as long as trained ones. The solvers take turns, and so does what
they are compared with: the bare network, called as often on a batch that is there already.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from measuring import circumstances

import patch_diffusion as pd
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import place
from patch_diffusion.denoise.threads import Shared, sharing
from patch_diffusion.devices import choose_device
from patch_diffusion.runs.model import build_network
from patch_diffusion.sampling.stochastic import SOLVERS

TWICE = ("heun", "stochastic_heun")  # evaluate twice a step, but for the last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="small", choices=pd.PRESETS)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network = build_network(pd.PRESETS[arguments.preset].network, 3, 0, coords=True)
    model = place(pd.Denoiser(network, resolution=(arguments.side, arguments.side)), choose_device()).eval()

    def sample(solver: str) -> None:
        for _ in pd.generate(
            model, range(arguments.images), pd.Sampling(solver=solver, steps=arguments.steps, batch=arguments.images)
        ):
            pass

    evaluations = {name: 2 * arguments.steps - 1 if name in TWICE else arguments.steps for name in SOLVERS}
    bare, seconds = [], {name: [] for name in SOLVERS}
    bare_network(model, arguments.images, 3)
    for solver in SOLVERS:
        sample(solver)  # kernels are chosen
    for _ in range(arguments.rounds):
        bare.append(timed(lambda: bare_network(model, arguments.images, arguments.steps)))
        for solver, found in seconds.items():
            found.append(timed(lambda solver=solver: sample(solver)))
    per_evaluation = median(bare) / arguments.steps
    rows = {
        solver: {
            "evaluations": evaluations[solver],
            "images_per_second": arguments.images / median(found),
            "share_of_network": median(
                each / arguments.steps * evaluations[solver] / mine for each, mine in zip(bare, found, strict=True)
            ),
        }
        for solver, found in seconds.items()
    }
    for solver, row in rows.items():
        print(
            f"{solver:>15}: {row['evaluations']} evaluations, {row['images_per_second']:.1f} images a second, "
            f"{row['share_of_network']:.1%} of the time is the network's"
        )
    if arguments.out:
        settings = {name: getattr(arguments, name) for name in ("preset", "side", "steps", "images", "rounds")}
        result = {**circumstances(), "settings": settings, "seconds_per_evaluation": per_evaluation, "solvers": rows}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def bare_network(model: pd.Denoiser, images: int, times: int) -> None:
    assert model.resolution is not None
    noisy = torch.randn(images, 3, *model.resolution, device=model.device)
    noisy = noisy.to(memory_format=torch.channels_last)
    sigma = torch.ones(images, device=model.device)
    coords = pd.coordinate_grid(*model.resolution, device=model.device)
    with sharing(model), torch.inference_mode():
        for _ in range(times):
            Shared(model)(noisy, sigma, Conditions(coords))


def timed(action: Callable[[], None]) -> float:
    began = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
