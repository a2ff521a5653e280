"""How soon is the default `train` where a plain training by the packages that people use ends, at equal minutes?

    python benchmarks/against_others.py --minutes 60 --data CATS.zip --held-out OTHERS.zip --out FILE.json
        [--runs FOLDER] [--resolution 64] [--judges 128] [--samples 200] [--python ENVIRONMENT/bin/python]

Three trainings, one after the other, each with the settings of its own documentation, which the scripts in ``others/``
quote: `train DATA --minutes N`, the example of diffusers for unconditional images (``UNet2DModel``, ``DDPMScheduler``,
AdamW, averages), and the README of lucidrains' denoising-diffusion-pytorch. No option of theirs is changed but the size
of the images, what needs a GPU, and the number of epochs, which is what the minutes allow.

All train on the same images for equal minutes, in which only training counts. They are judged by their averaged weights
on the same other images with the same noise. A network that predicts the noise, or v, is a denoiser at our noise
levels: sigma is sqrt((1 - a) / a) of ``alphas_cumprod``, and a level between two time steps has a real-valued time. The
loss is EDM's, with the deviation of the training images: of the estimates as they are, and of those clipped to the
range of pixels, as the samplers of DDPM clip them. Samples are made by Heun's method with 35 evaluations for all, as
1,000 steps of DDPM take too long on a CPU.

lucidrains' package needs torchvision, so it gets an environment of its own in the folder of the runs, by pip; or give
one by --python. If there is none to be had, the others are compared, and the result says so. A training that is
finished is not run again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import circumstances
from PIL import Image

import patch_diffusion as pd
from patch_diffusion.denoise.denoiser import evaluating
from patch_diffusion.denoise.process import EDM
from patch_diffusion.denoise.whole_image import SIGMAS
from patch_diffusion.evaluation.collect import collect
from patch_diffusion.evaluation.comparing import spaced_subset
from patch_diffusion.evaluation.distances import FrechetTo, KernelDistance, merged
from patch_diffusion.evaluation.extractors.choose import open_extractor
from patch_diffusion.evaluation.reference import reference_of
from patch_diffusion.evaluation.stream import stream_of_images
from patch_diffusion.patches.coords import coordinate_grid
from patch_diffusion.races.standings import time_to
from patch_diffusion.runs.log import read_log
from patch_diffusion.streams import slot_normal

HERE = Path(__file__).parent / "others"
sys.path.append(str(HERE))

import judged  # noqa: E402

PACKAGE = "denoising-diffusion-pytorch"
OURS, DIFFUSERS, LUCIDRAINS = "patch_diffusion", "diffusers", "lucidrains"
FINER = 4  # times as many moments of our training are judged, as the others' final losses are looked for on its curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, required=True, help="training of each")
    parser.add_argument("--data", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument(
        "--arms", nargs="+", choices=(OURS, DIFFUSERS, LUCIDRAINS), default=[OURS, DIFFUSERS, LUCIDRAINS]
    )
    parser.add_argument("--python", help=f"the Python of an environment that has {PACKAGE}")
    parser.add_argument("--judges", type=int, default=128, help="held-out images")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--moments", type=int, default=6, help="times that each is judged")
    parser.add_argument("--extractor", default="random", help="of the distances, as for evaluate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, help="folder of the trainings; else they are deleted")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        runs = (arguments.runs or Path(temporary)).resolve()
        runs.mkdir(parents=True, exist_ok=True)
        found = compared(arguments, runs)
    print(in_words(found))
    if arguments.out:
        settings = {name: value for name, value in vars(arguments).items() if name not in ("runs", "out", "python")}
        settings |= {name: Path(settings[name]).name for name in ("data", "held_out")}
        content = {**circumstances(), "settings": settings, **found}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def compared(arguments: argparse.Namespace, runs: Path) -> dict[str, Any]:
    images = pd.open_images(arguments.data, resolution=arguments.resolution, classes=False).buckets[0]
    judges = pd.open_images(arguments.held_out, resolution=arguments.resolution, classes=False).buckets[0]
    job = prepared(arguments, runs, images, judges)
    files, reasons = {}, {}
    for arm in arguments.arms:
        files[arm] = runs / f"{arm}.npz"
        if not files[arm].exists():
            reasons[arm] = TRAININGS[arm](arguments, {**job, "result": str(files[arm])}, runs)
    missing = {arm: reason for arm, reason in reasons.items() if reason}
    rows = {arm: row(np.load(file), images, arguments) for arm, file in files.items() if arm not in missing}
    return {"arms": rows, "not_measured": missing, "to_their_loss": to_their_loss(rows, arguments.minutes)}


def prepared(arguments: argparse.Namespace, runs: Path, images: pd.ImageSet, judges: pd.ImageSet) -> dict[str, Any]:
    """Write the images to train on, as an array and a folder, and those to judge by with noise; return the job."""
    job = {name: getattr(arguments, name) for name in ("minutes", "moments", "samples", "seed")}
    job |= {"side": arguments.resolution, "batch": 32, "batch_of_diffusers": 16, "judges": str(runs / "judges.npz")}
    job |= {"images": str(runs / "images.npz"), "folder": str(runs / "images"), "scratch": str(runs / "scratch")}
    job |= {"num_judges": min(arguments.judges, len(judges)), "data": [arguments.data, arguments.held_out]}
    file = runs / "job.json"
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != job:
        sys.exit(f"{runs} holds trainings with other options: give another --runs")
    pixels, _ = images.batch(np.arange(len(images)))
    array = pixels.permute(0, 2, 3, 1).numpy()
    np.savez(job["images"], images=array)
    Path(job["folder"]).mkdir(exist_ok=True)
    for place, each in enumerate(array):
        Image.fromarray(each).save(Path(job["folder"]) / f"{place:06}.png", compress_level=1)
    clean = judges.codec.encode(judges.batch(np.arange(job["num_judges"]))[0])
    shape = tuple(clean.shape[1:])
    noise = [slot_normal(0, "evaluation", level, range(len(clean)), shape).numpy() for level in range(len(SIGMAS))]
    np.savez(job["judges"], clean=clean.numpy(), noise=np.stack(noise), sigmas=np.array(SIGMAS))
    file.write_text(json.dumps(job, indent=1), encoding="utf-8")
    return job


def ours(arguments: argparse.Namespace, job: dict[str, Any], runs: Path) -> str:
    """Run the command `train` with its defaults, and judge the checkpoints that it leaves."""
    run = runs / OURS
    size = ["--resolution", str(arguments.resolution), "--data.classes", "False", "--data.held-out", "0"]
    command = [sys.executable, "-m", "patch_diffusion", "train", arguments.data, *size, "--out", str(run)]
    command += ["--minutes", f"{arguments.minutes:.6g}", "--seed", str(arguments.seed)]
    subprocess.run([*command, "--checkpoints", str(FINER * arguments.moments)], check=True)
    seconds = {line["step"]: line["seconds"] for line in read_log(run / "log.jsonl") if line and "seconds" in line}
    rows = []
    for checkpoint in sorted((run / "checkpoints").glob("step-*")):
        step = int(checkpoint.name.partition("-")[2])
        model = pd.load(checkpoint)
        with evaluating(model):
            at = seconds.get(step) or seconds_at(seconds, step)
            rows.append({"seconds": at, "steps": step, **judged.judged(denoiser_of(model), job)})
    model, told = pd.load(run), pd.describe(run)
    samples = [sample.visible for sample in pd.generate(model, range(job["samples"]))]
    config = told["options"]
    network = {name: value for name, value in config["network"].items() if value is not None}
    facts = {"name": OURS, "parameters": told["model"]["parameters"], "batch": config["batch"], "network": network}
    facts |= {"whole": config["patches"]["whole"], "precision": config["engine"]["precision"]}
    judged.write(job, rows, torch.stack(samples).permute(0, 2, 3, 1).numpy(), facts)
    return ""


def seconds_at(seconds: dict[int, float], step: int) -> float:
    """The seconds of training at a step between those of the log."""
    steps = sorted(seconds)
    return float(np.interp(step, [0, *steps], [0.0, *(seconds[each] for each in steps)]))


def denoiser_of(model: pd.Denoiser) -> judged.Denoise:
    assert model.resolution is not None
    where = coordinate_grid(*model.resolution, device=model.device)

    def denoise(noisy: torch.Tensor, sigma: float) -> torch.Tensor:
        levels = torch.full((len(noisy),), sigma, device=model.device)
        return model(noisy.to(model.device), levels, where).cpu()

    return denoise


def diffusers(arguments: argparse.Namespace, job: dict[str, Any], runs: Path) -> str:
    return run_script(sys.executable, "with_diffusers.py", job, runs)


def lucidrains(arguments: argparse.Namespace, job: dict[str, Any], runs: Path) -> str:
    python = arguments.python or environment(runs / "environment")
    if not python:
        return f"{PACKAGE} could not be installed into an environment of its own: give one by --python"
    return run_script(python, "with_lucidrains.py", job, runs)


def environment(folder: Path) -> str:
    """Make an environment with lucidrains' package, unless it is there; return its Python, nothing if that fails."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
    try:
        subprocess.run([python, "-m", "pip", "install", "--quiet", PACKAGE], check=True)
        subprocess.run([python, "-c", f"import {PACKAGE.replace('-', '_')}"], check=True, cwd=folder)
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"no environment with {PACKAGE}: {error}", file=sys.stderr)
        return ""
    return str(python)


def run_script(python: str, name: str, job: dict[str, Any], runs: Path) -> str:
    """Train by one of the scripts in an environment; return why it failed, nothing if it did not."""
    file = runs / f"{name}.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    status = subprocess.run([python, str(HERE / name), str(file)], cwd=runs, env=own).returncode
    return f"{name} ended with status {status}" if status else ""


TRAININGS = {OURS: ours, DIFFUSERS: diffusers, LUCIDRAINS: lucidrains}


def row(found: Any, images: pd.ImageSet, arguments: argparse.Namespace) -> dict[str, Any]:
    """The losses over the minutes of one training, and the distances of its samples."""
    deviation = images.standard_deviation
    weights = EDM().loss_weight(torch.tensor(SIGMAS, dtype=torch.float64), deviation).numpy()
    loss, clipped = (weights[:, None] * found[name] for name in ("squared", "clipped"))  # (moments, levels, images)
    curve = [
        [float(seconds) / 60, float(each)] for seconds, each in zip(found["seconds"], loss.mean((1, 2)), strict=True)
    ]
    return {
        "minutes": float(found["seconds"][-1]) / 60,
        "steps": int(found["steps"][-1]),
        "loss": curve[-1][1],
        "loss_clipped": float(clipped[-1].mean()),
        "by_noise": {f"{sigma:g}": float(each) for sigma, each in zip(SIGMAS, loss[-1].mean(1), strict=True)},
        "distances": distances(torch.from_numpy(found["samples"]).permute(0, 3, 1, 2), images, arguments.extractor),
        "curve": curve,
        "curve_clipped": [[time, float(each)] for (time, _), each in zip(curve, clipped.mean((1, 2)), strict=True)],
        "facts": json.loads(str(found["facts"])),
    }


def distances(samples: torch.Tensor, images: pd.ImageSet, name: str) -> dict[str, float]:
    extractor = open_extractor(name)
    reference = reference_of(stream_of_images(images), extractor)
    found = collect(stream_of_images(pd.ImageSet(samples)), extractor, what="samples")
    kernel = KernelDistance([found.features], spaced_subset(reference.features))()
    return {"frechet": FrechetTo(reference.gaussian)(merged(found.moments)), "kernel": kernel}


def to_their_loss(rows: dict[str, dict[str, Any]], minutes: float) -> dict[str, dict[str, Any]]:
    """When our training has the final loss of each other one, and how many times as fast that is; None: never.

    The minutes are those that were given: what the last step of the other takes beyond them does not count.
    """
    found: dict[str, dict[str, Any]] = {}
    for arm, other in rows.items():
        if arm == OURS or OURS not in rows:
            continue
        found[arm] = {}
        for kind, end in (("curve", "loss"), ("curve_clipped", "loss_clipped")):
            at = time_to([(time, loss) for time, loss in rows[OURS][kind]], other[end])
            found[arm][end] = {"minutes": at, "ratio": None if at is None else minutes / at}
    return found


def in_words(found: dict[str, Any]) -> str:
    lines = []
    for arm, each in found["arms"].items():
        ends = ", ".join(f"{name} {value:.4g}" for name, value in each["distances"].items())
        lines.append(
            f"{arm}: {each['facts']['parameters']:,} parameters, {each['steps']:,} steps in {each['minutes']:.3g} min; "
            f"loss {each['loss']:.4f} (clipped {each['loss_clipped']:.4f}); {ends}"
        )
    for arm, each in found["to_their_loss"].items():
        at, ratio = each["loss"]["minutes"], each["loss"]["ratio"]
        lines.append(
            f"{OURS} does not reach the final loss of {arm}"
            if at is None
            else f"{OURS} has the final loss of {arm} after {at:.3g} min: {ratio:.2f} times as fast"
        )
    return "\n".join([*lines, *(f"{arm}: not measured, {reason}" for arm, reason in found["not_measured"].items())])


if __name__ == "__main__":
    main()
