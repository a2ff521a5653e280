"""Is a model a good prior for deepinv's physics, and a patch prior as good as one of whole images?

    python -m venv /tmp/deepinv && /tmp/deepinv/bin/pip install . deepinv
    python benchmarks/deepinv_prior.py --python /tmp/deepinv/bin/python --minutes 10 --out deepinv.json

deepinv needs torchvision, so it has an environment of its own, and this script runs itself there. (a) The prior of a
Gaussian in closed form: deepinv's plug-and-play steps must come to its exact posterior. (b) Computed tomography of
phantoms, sums of random ellipses, from 20 views with noise: two models are trained on 100 phantoms for equal times,
one on patches and one on whole images, and deepinv's DiffPIR and plug-and-play steps (DPIR) reconstruct others by them.
Told is the PSNR in dB, the mean over the images, beside that of least squares alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measuring import circumstances
from torch import Tensor

import patch_diffusion as pd
from patch_diffusion.config_dict import from_dict
from patch_diffusion.training.build import build_trainer

SIDE, VIEWS, NOISE = 64, 20, 0.01
MEAN, DEVIATION = 0.6, 0.15


def phantoms(num: int, seed: int) -> Tensor:
    """Pictures (n, 1, side, side) from 0 to 1 of five to nine ellipses each, inside of a circle."""
    draws = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, SIDE)
    made = torch.zeros(num, 1, SIDE, SIDE)
    for picture in made:
        for _ in range(int(torch.randint(5, 10, (), generator=draws))):
            across, down, wide, high, turn, grey = torch.rand(6, generator=draws).tolist()
            x, y = axis[None] - (across - 0.5), axis[:, None] - (down - 0.5)
            cos, sin = torch.tensor(3.14159 * turn).cos(), torch.tensor(3.14159 * turn).sin()
            inside = ((x * cos + y * sin) / (0.08 + 0.35 * wide)) ** 2 + (
                (y * cos - x * sin) / (0.08 + 0.35 * high)
            ) ** 2
            picture[0] += (0.2 + 0.5 * grey) * (inside < 1)
    return made.clamp(max=1)


def train(folder: Path, minutes: float) -> None:
    """The same network for the same time, on patches and on whole images."""
    pixels = (phantoms(100, 0) * 255).round().to(torch.uint8)
    for name, whole in (("patches", 0.25), ("whole", 1.0)):
        options = {"patches": {"whole": whole}, "minutes": minutes, "samples": 0, "checkpoints": 1, "track": []}
        config = from_dict({**options, "data": {"held_out": 0.0}}, base=pd.PRESETS["small"])
        build_trainer(config, pd.ImageSet(pixels), folder / name, show=False).fit(minutes=minutes)


class Gaussian(pd.Denoiser):
    """The posterior mean where pixels are normal numbers about `MEAN`."""

    def forward(self, noisy: Tensor, sigma: Any, coords: Any, labels: Any = None) -> Tensor:
        """Denoise in model space."""
        mean, variance, level = 2 * MEAN - 1, 4 * DEVIATION**2, torch.as_tensor(sigma).view(-1, 1, 1, 1)
        return mean + (noisy - mean) * variance / (variance + level**2)


def measure(folder: Path, num: int, steps: int) -> dict[str, Any]:
    """In the environment of deepinv: all figures, by task and method."""
    import deepinv  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    result: dict[str, Any] = {"versions": {name: version(name) for name in ("deepinv", "torch", "torchvision")}}
    result["gaussian"] = {"largest error": exact(deepinv)}
    clean = phantoms(num, 1)
    physics = deepinv.physics.Tomography(VIEWS, SIDE, normalize=True, noise_model=deepinv.physics.GaussianNoise(NOISE))
    measured, ratio = physics(clean), deepinv.metric.PSNR()
    back = physics.A_dagger(measured)
    result["tomography"] = {"least squares": float(ratio(back, clean).mean())}
    for name in ("patches", "whole"):
        prior = pd.as_prior(pd.load(folder / name, device="cpu"))
        restore = {
            "DiffPIR": lambda prior: deepinv.sampling.DiffPIR(
                prior, deepinv.optim.data_fidelity.L2(), sigma=NOISE, max_iter=steps
            )(measured, physics, x_init=back),
            "plug and play": lambda prior: plug_and_play(prior, physics, measured, back, steps),
        }
        for method, solve in restore.items():
            with torch.no_grad():
                found = solve(prior).clamp(0, 1)
            result["tomography"][f"{method}, {name}"] = float(ratio(found, clean).mean())
            print(f"{method}, {name}: {result['tomography'][f'{method}, {name}']:.2f} dB", flush=True)
    return result


def plug_and_play(prior: Any, physics: Any, measured: Tensor, start: Tensor, steps: int) -> Tensor:
    """Half-quadratic splitting with falling noise levels, from 0.5 to 0.01 (DPIR, arXiv 2008.13751)."""
    import deepinv  # pyright: ignore[reportMissingImports]

    fidelity, x = deepinv.optim.data_fidelity.L2(), start
    for sigma in torch.logspace(-0.3, -2, steps).tolist():
        x = prior(fidelity.prox(x, measured, physics, gamma=(sigma / (4 * NOISE)) ** 2), sigma)
    return x


def exact(deepinv: Any) -> float:
    """The largest error of plug-and-play steps of deepinv on masked pixels, where the posterior is known."""
    prior = pd.as_prior(Gaussian(lambda *_: torch.zeros(())))
    draws = torch.Generator().manual_seed(0)
    noise, step = 0.1, 0.005
    known = (torch.rand(1, 1, 8, 8, generator=draws) < 0.5).float()
    physics = deepinv.physics.Inpainting((1, 8, 8), mask=known)
    measured = physics.A(torch.rand(1, 1, 8, 8, generator=draws))
    model = deepinv.optim.optim_builder(
        "PGD",
        prior=deepinv.optim.prior.PnP(denoiser=prior),
        data_fidelity=deepinv.optim.data_fidelity.L2(sigma=noise),
        params_algo={"stepsize": step, "g_param": step**0.5},
        max_iter=500,
        early_stop=False,
    )
    weight = DEVIATION**2 / (DEVIATION**2 + noise**2)
    expected = torch.where(known > 0, MEAN + weight * (measured - MEAN), MEAN)
    return float((model(measured, physics) - expected).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--python", type=Path, help="of the environment with deepinv")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, of each of the two models")
    parser.add_argument("--num", type=int, default=10, help="phantoms to reconstruct")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--runs", type=Path, help="folder of the trained models; else a temporary one")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.num, given.steps)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.runs or Path(temporary)
        train(folder, given.minutes)
        line = [given.python, __file__, "--measure", folder, "--num", str(given.num), "--steps", str(given.steps)]
        told = subprocess.run(list(map(str, line)), check=True, stdout=subprocess.PIPE, text=True).stdout
    *lines, found = told.splitlines()
    print("\n".join(lines))
    result = {**circumstances(), "minutes": given.minutes, **json.loads(found)}
    print(json.dumps({name: result[name] for name in ("versions", "gaussian", "tomography")}, indent=1))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
