"""Which way to sample under a condition: replacement with resampling, the network's covariance, or DPS?

    python benchmarks/restoration.py RUN --data digits --held-out 0.34 --num 100

RUN was trained with this share held out, or DATA are others than it was trained on. Of these images a half is masked,
or they are made smaller, blurred or noisy; each method brings them back. Told are the error (PSNR in dB, the mean over
images), and of digits how many of the filled ones a classifier still recognises that was trained on others; with
``--extractor`` also how far the features of what was brought back, as a set, are from those of the true images; with
``--means`` the same of the mean of so many draws. All images are solved in one batch.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import circumstances
from torch import Tensor
from torch.nn import functional as F

import patch_diffusion as pd
from patch_diffusion.data.images import ImageSet
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.sampling.bind import bind
from patch_diffusion.sampling.editing.edit import ITERATIONS
from patch_diffusion.sampling.editing.operators import average_pooling, gaussian_blur
from patch_diffusion.sampling.generate import noise_of
from patch_diffusion.sampling.guidance.posterior import posterior
from patch_diffusion.sampling.resampling import resampling
from patch_diffusion.sampling.step import Denoise

Operator = Callable[[Tensor], Tensor]


def methods(tasks: list[str]) -> dict[str, dict[str, Any]]:
    """Settings by name."""
    found: dict[str, dict[str, Any]] = {}
    for repeats in (1, 2, 4, 8, 16):
        found[f"isotropic, {repeats}x"] = {"covariance": "isotropic", "repeats": repeats}
    for repeats in (1, 2, 4):
        found[f"network, {repeats}x"] = {"covariance": "network", "repeats": repeats}
    for scale in (3.0, 10.0, 30.0):
        found[f"DPS, {scale:g}"] = {"scale": scale}
    return found


def dps(denoise: Denoise, noisy: Tensor, sigmas: Tensor, residual: Operator, noise: Any, scale: float) -> Tensor:
    """Diffusion posterior sampling (Chung et al., arXiv 2209.14687, algorithm 1), in noise that is not scaled."""
    draws = count()
    for sigma, next_sigma in pairwise(sigmas):
        with torch.enable_grad():
            start = noisy.detach().requires_grad_()
            denoised = denoise(start, sigma)
            norm = residual(denoised).flatten(1).norm(dim=1).sum()
        gradient = torch.autograd.grad(norm, start)[0]
        kept = (next_sigma / sigma) ** 2
        fresh = next_sigma * (1 - kept).sqrt() * noise(next(draws)) if next_sigma > 0 else 0
        ahead = denoised.detach() + kept * (noisy - denoised.detach()) + fresh
        # The paper's images are divided by sqrt(1 + sigma^2), and so are its gradients.
        noisy = ahead - scale * (1 + sigma**2) * gradient * (next_sigma > 0)
    return noisy


def solve(
    model: pd.Denoiser, operator: Operator, values: Tensor, labels: Tensor | None, steps: int, noise: float,
    shape: tuple[int, ...], settings: dict[str, Any], draw: int = 0,
) -> Tensor:  # fmt: skip
    """Images (n, c, h, w) in model space; of another ``draw`` others that agree with the values as well."""
    num = len(values)
    denoise = bind(model, Conditions(pd.coordinate_grid(*shape[1:]), labels))
    sigmas = pd.karras_sigmas(steps, model.sigma_min, model.sigma_max)

    def drawn(index: int | None) -> Tensor:
        return noise_of(range(draw * num, (draw + 1) * num), shape, model.device, index)

    with torch.no_grad():
        start = drawn(None) * sigmas[0]
        start = start + model.centre(start)
        if "scale" in settings:
            return dps(denoise, start, sigmas, lambda x: values - operator(x), drawn, settings["scale"])
        known = pd.Measurement(values[0], operator, (shape[0], shape[1], shape[2]))
        towards = posterior(
            denoise,
            lambda images: values - operator(images),
            operator,
            known.transposed,
            noise=noise,
            sigma_data=model.sigma_data,
            covariance=settings["covariance"],
            iterations=settings.get("iterations", ITERATIONS[settings["covariance"]]),
        )
        return resampling(towards, start, sigmas, noise=drawn, repeats=settings["repeats"])


def psnr(found: Tensor, truth: Tensor) -> float:
    """The mean over images, of values from -1 to 1."""
    errors = ((found.clamp(-1, 1) - truth) / 2).square().flatten(1).mean(1)
    return float(-10 * errors.log10().mean())


def distances(found: Tensor, truth: Tensor, model: pd.Denoiser, extractor: str) -> dict[str, float]:
    """Of the features of two sets of images."""
    sets = [pd.ImageSet(model.codec.decode(each)) for each in (found, truth)]
    result = pd.evaluate(
        sets[0], reference=sets[1], extractor=extractor, options=pd.EvaluationOptions(metrics=("frechet", "kernel"))
    )
    return {name: measure.value for name, measure in result.measures.items()}


def judge_of(images: ImageSet) -> tuple[Any, np.ndarray]:
    """The classifier of examples/recognise_digits.py, and which digits it has not seen."""
    from sklearn.svm import SVC

    assert images.labels is not None
    half = np.random.default_rng(0).permutation(len(images)) < len(images) // 2
    pixels = images.pixels.flatten(1).numpy() / 255
    return SVC(C=10).fit(pixels[half], images.labels.numpy()[half]), ~half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--data", default="digits", metavar="DATA")
    parser.add_argument(
        "--held-out", type=float, default=0.0, help="share of DATA that was held out; 0: none was trained on"
    )
    parser.add_argument("--num", type=int, default=100, help="images")
    parser.add_argument("--steps", type=int, default=32, help="noise levels")
    parser.add_argument("--tasks", default="left,right,super-resolution,deblur,denoise")
    parser.add_argument("--methods", default="", help="only those that begin so, with a ; between them")
    parser.add_argument("--classes", action="store_true", help="tell the model the class")
    parser.add_argument("--extractor", metavar="KIND|FILE", help="also measure distances of features")
    parser.add_argument("--means", type=int, default=1, metavar="N", help="also of the mean of N draws")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--pictures", type=Path, metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(1)

    model = pd.load(options.run)
    assert model.resolution is not None
    height, width = model.resolution
    images = pd.open_images(options.data, resolution=(height, width)).buckets[0]
    held = RunFolder(Path(options.run)).hold_out(images, options.held_out, 0)[1] or images
    assert isinstance(held, ImageSet)
    indices = held.rows(np.arange(len(held)))
    judge, unseen = judge_of(images) if options.data == "digits" else (None, np.ones(len(images), bool))
    chosen = [index for index in indices if unseen[index]][: options.num]
    truth = model.codec.encode(images.pixels[chosen])
    classes = None if images.labels is None else images.labels[chosen]
    labels = classes if options.classes and model.num_classes else None
    random = torch.Generator().manual_seed(0)

    left, right = (torch.ones(height, width) for _ in range(2))
    left[:, : width // 2], right[:, width // 2 :] = 0, 0
    tasks: dict[str, tuple[Operator, float]] = {
        "left": (lambda x: x * left, 0.0),
        "right": (lambda x: x * right, 0.0),
        "super-resolution": (average_pooling(2), 0.0023),
        "deblur": (gaussian_blur(1.0, (height, width)), 0.0023),
        "denoise": (lambda x: x, 0.2),
    }
    wanted = [prefix.strip() for prefix in options.methods.split(";") if prefix.strip()]
    results: list[dict[str, Any]] = []
    for task in options.tasks.split(","):
        operator, noise = tasks[task]
        exact = operator(truth)
        values = exact + noise * torch.randn(exact.shape, generator=random)

        def restored(task=task, operator=operator, noise=noise, values=values) -> Iterator[tuple[str, Tensor, float]]:
            """Methods, what they make, and how long that takes."""
            if task == "super-resolution":
                yield "bicubic", F.interpolate(values, scale_factor=2, mode="bicubic"), 0.0
            for name, settings in methods([task]).items():
                if wanted and not name.startswith(tuple(wanted)):
                    continue
                start, draws = time.perf_counter(), []
                for draw in range(options.means):
                    found = solve(
                        model, operator, values, labels, options.steps, noise, tuple(truth.shape[1:]), settings, draw
                    )
                    # What is known exactly stays as it is.
                    draws.append(
                        torch.where(operator(torch.ones_like(found)) > 0, truth, found) if noise == 0 else found
                    )
                seconds = time.perf_counter() - start
                yield name, draws[0], seconds / options.means
                if options.means > 1:
                    yield f"{name}, mean of {options.means}", torch.stack(draws).mean(0), seconds

        for name, found, seconds in restored():
            entry: dict[str, Any] = {"task": task, "method": name, "psnr": psnr(found, truth), "seconds": seconds}
            if judge is not None and classes is not None:
                pixels = model.codec.decode(found).flatten(1).numpy() / 255
                entry["recognised"] = float((judge.predict(pixels) == classes.numpy()).mean())
            if options.extractor:
                entry |= distances(found, truth, model, options.extractor)
            results.append(entry)
            others = {"recognised": "{:6.1%}", "frechet": "Frechet {:.1f}", "kernel": "kernel {:.4f}"}
            told = "  ".join(form.format(entry[key]) for key, form in others.items() if key in entry)
            print(f"{task:<17} {name:<28} {entry['psnr']:6.2f} dB  {told}  {seconds:.1f} s", flush=True)
            if options.pictures:
                rows = [model.codec.decode(each[:16]) for each in (truth, found)]
                grid = pd.picture_grid([picture for row in rows for picture in row], columns=16)
                options.pictures.mkdir(parents=True, exist_ok=True)
                grid.save(options.pictures / f"{task}-{name.replace(', ', '-')}.png")
    if options.json:
        told = {"run": Path(options.run).name, "num": len(chosen), "steps": options.steps, "classes": options.classes}
        told |= {"extractor": options.extractor and Path(options.extractor).name}
        options.json.write_text(json.dumps({**told, **circumstances(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
