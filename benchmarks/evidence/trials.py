"""Trainings that differ in one thing and cost the same, and what is measured of each.

Every script beside this one names its arms and calls `run`. The budget is a number of floating-point operations of
training, the same for every arm, so that a busy machine changes nothing but the seconds. An arm that was trained before
with the same settings, by whichever script, is not trained again.
"""

import argparse
import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from changes import CHANGES, LastOnWhole, hide_coords

import patch_diffusion as pd
from patch_diffusion.config_dict import from_dict, to_dict
from patch_diffusion.denoise.whole_image import losses_of_images
from patch_diffusion.devices import choose_device
from patch_diffusion.evaluation.circumstances import circumstances
from patch_diffusion.evaluation.intervals import interval_of_mean
from patch_diffusion.training.build import build_trainer
from patch_diffusion.training.trainer import Trainer

RESULTS = Path(__file__).parents[1] / "results"
SHARED = Path("../shared/data")


@dataclass(frozen=True)
class Arm:
    """One way to train: ``options`` laid over the preset's, on the first ``images`` of the data, all where None.

    ``against``: the arm that its loss is compared with, image by image. ``coords_hidden``: when the network's two
    coordinate channels hold zeros. ``repeated``: with all seeds, and not with the first alone. ``change``: what else is
    done to the trainer, by its name in `CHANGES`.
    """

    name: str
    options: dict[str, Any]
    against: str | None = None
    images: int | None = None
    coords_hidden: Literal["training", "sampling"] | None = None
    repeated: bool = False
    change: str | None = None


@dataclass(frozen=True)
class Scale:
    """How much is trained and measured; ``options`` are laid over the preset ``small``."""

    flops: float
    samples: int
    judges: int
    resolution: int
    together: int
    data: str = str(SHARED / "cat-faces-64-train.zip")
    held_out: str = str(SHARED / "cat-faces-64-heldout.zip")
    extractor: str = str(SHARED / "mobilenet_v2_imagenet_f16.safetensors")
    options: dict[str, Any] | None = None
    steps: int = 18
    solver: str = "dpm_solver_2m"


# Those of the preset when the first of these trials were made.
BEFORE = {
    "batch": 16,
    "noise": {"p_mean": 0.0, "p_std": None, "weight": "process"},
    "optimizer": {"decay": "cosine"},
}
ON_CPU = Scale(6e12, samples=400, judges=256, resolution=32, together=2, options={**BEFORE, "engine": {"threads": 1}})
ON_GPU = Scale(
    1e15,
    samples=2000,
    judges=1000,
    resolution=64,
    together=1,
    options={**BEFORE, "network": {"width": 64}, "batch": 64},
)
QUICK = Scale(
    1e8,
    samples=12,
    judges=8,
    resolution=16,
    together=1,
    data="digits",
    held_out="",
    extractor="random",
    options={
        **BEFORE,
        "network": {"width": 8, "multipliers": [1, 2], "attention": []},
        "batch": 2,
        "engine": {"threads": 1, "device": "cpu"},
    },
    steps=2,
)


def run(about: str | None, arms: Sequence[Arm], name: str) -> None:
    """The command line: train and measure all arms, print a table, write ``results/evidence-NAME.json``."""
    on = {"cpu": ON_CPU, "gpu": ON_GPU, "quick": QUICK}
    parser = argparse.ArgumentParser(description=about.splitlines()[0] if about else None)
    parser.add_argument("--arms", nargs="+", choices=[arm.name for arm in arms], metavar="NAME", help="these alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="the first for all arms, the rest for some")
    parser.add_argument("--flops", type=float, help="of the training of each arm")
    parser.add_argument("--samples", type=int, help="of each arm, for the distances; 0: none, and no distances")
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--data", help="images to train on, with --held-out; else cat faces")
    parser.add_argument("--held-out", help="those that judge")
    parser.add_argument("--quick", action="store_true", help="a few steps on digits, to see that it works")
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"), help="folder of the trained models")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = choose_device()
    kind = "quick" if arguments.quick else "gpu" if device.type == "cuda" else "cpu"
    asked = {
        name: value
        for name in ("flops", "samples", "resolution", "data", "held_out")
        if (value := getattr(arguments, name)) is not None
    }
    scale = replace(on[kind], **asked)
    options = " --quick" * arguments.quick + "".join(
        f" --{name.replace('_', '-')} {value if isinstance(value, str) else f'{value:g}'}"
        for name, value in asked.items()
    )
    if arguments.arms:
        arms = [arm for arm in arms if arm.name in arguments.arms]
        options += "".join(f' "{arm.name}"' if number else f' --arms "{arm.name}"' for number, arm in enumerate(arms))
    result = {
        "command": f"python benchmarks/evidence/{name}.py{options} --seeds {' '.join(map(str, arguments.seeds))}",
        **circumstances(device),
        "settings": asdict(scale),
        "arms": compare(arms, scale, arguments.seeds, arguments.runs),
    }
    print_table(result["arms"])
    out = arguments.out or (None if arguments.quick else RESULTS / f"evidence-{name}-{kind}.json")
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")


def compare(arms: Sequence[Arm], scale: Scale, seeds: Sequence[int], runs: Path) -> list[dict[str, Any]]:
    """A row of each arm: its options and, of each seed, what it cost and what was measured."""
    trials = [(arm, scale, seed, runs) for arm in arms for seed in (seeds if arm.repeated else seeds[:1])]
    folders = {folder_of(*trial): trial for trial in trials}  # arms that are measured differently may share a run
    if scale.together > 1:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(scale.together, spawn, torch.set_num_threads, (1,)) as pool:
            list(pool.map(train, folders.values()))
            measured = list(pool.map(measure, trials))
    else:
        for trial in folders.values():
            train(trial)
        measured = [measure(trial) for trial in trials]
    losses = {
        (arm.name, seed): torch.tensor(found.pop("losses"), dtype=torch.float64)
        for (arm, _, seed, _), found in zip(trials, measured, strict=True)
    }
    rows: dict[str, dict[str, Any]] = {arm.name: {**asdict(arm), "seeds": []} for arm in arms}
    for (arm, _, seed, _), found in zip(trials, measured, strict=True):
        if arm.against is not None and (arm.against, seed) in losses:
            apart = losses[arm.name, seed] - losses[arm.against, seed]
            found["difference"] = {**interval_of_mean(apart, 0).as_dict(), "settings": {"against": arm.against}}
        rows[arm.name]["seeds"].append(found)
    return list(rows.values())


def folder_of(arm: Arm, scale: Scale, seed: int, runs: Path) -> Path:
    """Of the run of an arm: another one where anything is different that training depends on."""
    hidden = arm.coords_hidden == "training"
    told = [to_dict(config_of(arm, scale, seed)), scale.data, scale.resolution, scale.flops, arm.images, hidden]
    told += [arm.change] if arm.change else []
    return runs / hashlib.blake2b(json.dumps(told).encode(), digest_size=6).hexdigest()


def config_of(arm: Arm, scale: Scale, seed: int) -> pd.Config:
    """The preset's options, those of the scale, those of the arm, and nothing that would take training time."""
    quiet = {"seed": seed, "minutes": None, "samples": 0, "checkpoints": 1, "track": [], "batch_pixels": None}
    quiet["data"] = {"held_out": 0.0}  # those that judge are apart already
    config = from_dict(quiet, base=pd.PRESETS["small"])
    for options in (scale.options or {}, arm.options):
        config = from_dict(options, base=config)
    return config


@cache
def all_images(data: str, held_out: str, resolution: int) -> tuple[pd.ImageSet, pd.ImageSet]:
    """To train on, and held out: the last hundred where there is no file of them."""
    images = pd.open_images(data, resolution=resolution, classes=False).buckets[0]
    if held_out:
        return images, pd.open_images(held_out, resolution=resolution, classes=False).buckets[0]
    return pd.ImageSet(images.pixels[:-100]), pd.ImageSet(images.pixels[-100:])


def images_of(arm: Arm, scale: Scale) -> pd.ImageSet:
    """Those that an arm is trained on: the first of the data, which are in random order."""
    images, _ = all_images(scale.data, scale.held_out, scale.resolution)
    return images if arm.images is None else pd.ImageSet(images.pixels[: arm.images])


def train(trial: tuple[Arm, Scale, int, Path]) -> None:
    """Until the budget is spent, if that was not done before."""
    arm, scale, seed, runs = trial
    trainer = build_trainer(
        config_of(arm, scale, seed), images_of(arm, scale), folder_of(arm, scale, seed, runs), show=False
    )
    for change in ("no coordinates" if arm.coords_hidden == "training" else None, arm.change):
        if change is not None:
            CHANGES[change](trainer)
    began = time.monotonic()
    trainer.fit(steps=steps_for(trainer, scale.flops))
    print(
        f"{arm.name}, seed {seed}: {trainer.state.counters.step:,} steps, {time.monotonic() - began:.0f} s", flush=True
    )


def steps_for(trainer: Trainer, flops: float) -> int:
    """Steps that cost as many operations, but for a part of the last one.

    The sizes of all steps are known beforehand; where they depend on what was spent, the proportions are.
    """
    schedule, resolution = trainer.schedule, trainer.images.resolution

    def cost(size: Any) -> int:
        return size.num_images(trainer.batches.batch) * trainer.flops[size.shape]

    if schedule.kind == "progressive" or isinstance(schedule, LastOnWhole):
        return max(1, round(flops / sum(size.probability * cost(size) for size in schedule.sizes_for(resolution))))
    spent = step = 0
    while spent < flops:
        spent += cost(schedule.size_at(step, resolution))
        step += 1
    return step


def measure(trial: tuple[Arm, Scale, int, Path]) -> dict[str, Any]:
    """What a trained arm cost, how well it denoises held-out images (``losses``, of each), how good its samples are."""
    arm, scale, seed, runs = trial
    folder = folder_of(arm, scale, seed, runs)
    kept = folder / f"measured{'-without-coords' * (arm.coords_hidden == 'sampling')}.json"
    how = {name: value for name, value in asdict(scale).items() if name not in ("options", "together")}
    if kept.exists() and (found := json.loads(kept.read_text()))["how"] == how:
        return found["what"]
    everything, held_out = all_images(scale.data, scale.held_out, scale.resolution)
    images = everything if arm.images is None else images_of(arm, scale)
    model = pd.load(folder)
    if arm.coords_hidden == "sampling":
        model.module.register_forward_pre_hook(hide_coords)
    by_noise = {
        sigma: each * as_of_edm(model, sigma)
        for sigma, each in losses_of_images(model, held_out, most=scale.judges).items()
    }
    losses = torch.stack(list(by_noise.values())).mean(dim=0)
    distances = {}
    if scale.samples:
        distances = pd.evaluate(
            model,
            images,
            held_out=held_out,
            reference=everything,
            extractor=scale.extractor,
            sampling=pd.Sampling(steps=scale.steps, solver=scale.solver),
            options=pd.EvaluationOptions(metrics=("frechet", "kernel", "memorization"), samples=scale.samples),
        ).measures
    (state,) = [json.loads(path.read_text()) for path in sorted(folder.glob("checkpoints/*/state.json"))[-1:]]
    found = {
        "seed": seed,
        "cost": {name: state["seen"][name] for name in ("step", "images", "patches", "pixels", "flops", "seconds")},
        "epochs": state["seen"]["images"] / len(images),
        "loss": interval_of_mean(losses, 0).as_dict(),
        "loss_by_noise": {f"{sigma:g}": float(each.mean()) for sigma, each in by_noise.items()},
        **{name: measured.as_dict() for name, measured in distances.items()},
        "losses": losses.tolist(),
    }
    kept.write_text(json.dumps({"how": how, "what": found}))
    return found


def write_rows(
    trials: Sequence[Any], row_of: Callable[[Any], dict[str, Any]], out: Path, command: str, together: int
) -> None:
    """Train what the file does not have yet, some beside each other on one thread each, and write each row at once.

    ``trials`` are dataclasses that ``row_of`` makes rows of; a row has its trial as a dict.
    """
    content = json.loads(out.read_text()) if out.exists() else {"rows": []}
    done = [row["trial"] for row in content["rows"]]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(together, spawn, torch.set_num_threads, (1,)) as pool:
        for finished in as_completed([pool.submit(row_of, trial) for trial in trials if asdict(trial) not in done]):
            row = finished.result()
            content = {"command": command, **circumstances(torch.device("cpu")), "rows": [*content["rows"], row]}
            out.write_text(json.dumps(content, indent=1) + "\n")
            print("{loss:.4f}  {parameters:>9,} parameters, {images:>8,} images, {trial}".format(**row), flush=True)


def row_of_trial(trial: Any, arm: Arm, scale: Scale, runs: Path) -> dict[str, Any]:
    """Train an arm with the seed of a trial, and measure: a row of `write_rows`."""
    told = (arm, scale, trial.seed, runs)
    train(told)
    found = measure(told)
    facts = json.loads((folder_of(*told) / "config.json").read_text())
    return {
        "trial": asdict(trial),
        "parameters": facts["model"]["parameters"],
        "steps": found["cost"]["step"],
        **{name: found["cost"][name] for name in ("images", "flops", "seconds")},
        "epochs": found["epochs"],
        "loss": found["loss"]["value"],
        "interval": found["loss"]["interval"],
        "loss_by_noise": found["loss_by_noise"],
    }


def as_of_edm(model: pd.Denoiser, sigma: float) -> float:
    """The factor that gives a loss at a noise level the weight it has for EDM, by which all processes are compared."""
    level = torch.tensor(sigma, dtype=torch.float64)
    return float(pd.EDM().loss_weight(level, model.sigma_data) / model.loss_weight(level))


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """A line for each arm and seed."""
    for row in rows:
        for found in row["seeds"]:
            apart = found.get("difference")
            told = "" if apart is None else " ({:+.4f}, {:+.4f} to {:+.4f})".format(apart["value"], *apart["interval"])
            names = [name for name in ("frechet", "kernel", "near_copies") if name in found]
            told += "".join(f", {name} {found[name]['value']:.4g}" for name in names)
            print(
                f"{row['name']:>30} seed {found['seed']}: loss {found['loss']['value']:.4f}{told}, "
                f"{found['cost']['flops']:.3g} FLOPs, {found['cost']['seconds']:.0f} s"
            )
