"""How much sooner is a model good that is trained on from another one?

    python benchmarks/evidence/start.py --source CIFAR.zip --data CATS.zip --held-out CATS-HELD-OUT.zip \
        [--minutes 20] [--shares 0.125 0.25 0.5] [--seeds 0 1 2] [--large CATS-64.zip --large-held-out ...]

A run on the source's images is trained once. Then, with each seed, a model is trained from scratch for all minutes, and
others are trained on from the source for a share of them, each with a schedule of its own. What ``train`` chooses is
chosen. Losses are those of held-out whole images, weighted as for a sigma_data of 0.5 in all, so that they compare.

With --large, a run on DATA is carried to larger images: its loss there at step 0, and its own on the same images when
they are resized to the size that it knows.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import patch_diffusion as pd
from patch_diffusion.config import Config, Data
from patch_diffusion.data.images import Images
from patch_diffusion.data.sources import open_data
from patch_diffusion.interop.start import open_start
from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.training.build import build_trainer
from patch_diffusion.training.choices.source import with_source

sys.path.append(str(Path(__file__).parents[1]))

from measuring import circumstances

SIGMAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)


def losses(model: pd.Denoiser, images: Images, most: int) -> dict[float, float]:
    """Return the loss at each noise level, weighted as for a sigma_data of 0.5."""
    found = pd.whole_image_loss(model, images, sigmas=SIGMAS, most=most)
    return {sigma: loss * _weight(sigma, 0.5) / _weight(sigma, model.sigma_data) for sigma, loss in found.items()}


def _weight(sigma: float, sigma_data: float) -> float:
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def trained(data: str, out: Path, arguments: argparse.Namespace, **options: Any) -> tuple[pd.Denoiser, dict[str, Any]]:
    """Train by what ``train`` chooses; return the model and what it cost."""
    config = Config(data=Data(source=data, resolution=arguments.resolution, held_out=0.0), samples=0, track=())
    start = options.pop("start", None)
    model = pd.train(replace(config, **options), out, start=start)
    found = pd.describe(out)
    progress = found["progress"]
    cost = {name: progress[name] for name in ("step", "images", "flops", "seconds")}
    network = {name: value for name, value in found["options"]["network"].items() if value is not None}
    network.pop("unet", None)
    return model, {**cost, "parameters": found["model"]["parameters"], "network": network}


def contest(arguments: argparse.Namespace, runs: Path) -> dict[str, Any]:
    """Train from scratch and from the source with each seed."""
    budget = {"minutes": arguments.minutes} if arguments.steps is None else {"steps": arguments.steps}
    ((unit, whole),) = budget.items()
    source = runs / "source"
    _, cost = trained(arguments.source, source, arguments, **{unit: whole})
    held_out = open_data(Data(source=arguments.held_out, resolution=arguments.resolution))
    rows = []
    for seed in arguments.seeds:
        for share in (None, *arguments.shares):
            spent = whole if share is None else type(whole)(max(whole * share, 1 if unit == "steps" else 0))
            out = runs / f"{'scratch' if share is None else f'start-{share:g}'}-seed{seed}"
            options = {"seed": seed, unit: spent, "start": None if share is None else source}
            model, took = trained(arguments.data, out, arguments, **options)
            found = losses(model, held_out, arguments.most)
            rows.append({"seed": seed, "share": share, unit: spent, "loss": fmean(found.values()), "by_noise": found})
            rows[-1]["cost"] = took
            print(json.dumps({name: rows[-1][name] for name in ("seed", "share", "loss")}), flush=True)
    reached = {}
    for share in arguments.shares:
        pairs = [
            (each["loss"], other["loss"])
            for each in rows
            for other in rows
            if each["share"] == share and other["share"] is None and each["seed"] == other["seed"]
        ]
        reached[f"{share:g}"] = sum(found <= scratch for found, scratch in pairs)
    return {"source": cost, "unit": unit, "budget": whole, "rows": rows, "seeds_that_reach_scratch": reached}


def enlarged(arguments: argparse.Namespace, source: Path, runs: Path) -> dict[str, Any]:
    """Return the loss of a run at step 0 on larger images, and its own on the same ones in the size that it knows."""
    large = open_data(Data(source=arguments.large_held_out or arguments.large))
    side = arguments.resolution or RunFolder(source).read_config()[1].resolution
    small = open_data(Data(source=arguments.large_held_out or arguments.large, resolution=side))
    start = open_start(str(source))
    config = Config(data=large.options, start=str(source), batch=2, steps=1, samples=0, track=())
    config, _ = with_source(config, (), start.model, large.channels)
    trainer = build_trainer(config, large, runs / "never", start=start, show=False)
    found = losses(trainer.state.average.denoiser, large, arguments.most)
    own = losses(start.model, small, arguments.most)
    return {
        "from": list(small.resolution),
        "to": list(large.resolution),
        "at_step_0": {"loss": fmean(found.values()), "by_noise": found},
        "source_on_resized": {"loss": fmean(own.values()), "by_noise": own},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--source", required=True, help="images of the run to train on from")
    parser.add_argument("--data", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--steps", type=int, help="in place of minutes, to try the script")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.125, 0.25, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--large")
    parser.add_argument("--large-held-out")
    parser.add_argument("--most", type=int, default=1000, help="held-out images")
    parser.add_argument("--runs", type=Path, help="folder for the runs, which go on there; default: a temporary one")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = arguments.runs or Path(folder)
        found = contest(arguments, runs)
        if arguments.large:
            source = runs / f"scratch-seed{arguments.seeds[0]}"
            found["enlarged"] = enlarged(arguments, source, runs)
    print(json.dumps({name: value for name, value in found.items() if name != "rows"}, indent=1))
    if arguments.out:
        settings = {name: value for name, value in vars(arguments).items() if name not in ("out", "runs")}
        settings |= {name: Path(value).name for name, value in settings.items() if isinstance(value, str)}
        arguments.out.write_text(json.dumps({**circumstances(), "settings": settings, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
