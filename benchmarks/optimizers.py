"""Which optimizer learns most in as many steps: AdamW, Muon or schedule-free AdamW?

    python benchmarks/optimizers.py digits --out benchmarks/results/optimizers-digits-cpu.json
    python benchmarks/optimizers.py faces --data TRAIN.zip --held-out HELDOUT.zip --out benchmarks/results/...

Settings of the preset ``digits``, or of ``small`` at 32 x 32, with a budget of steps; one thread. Three learning rates
each with one seed, more on the side where the best is the outermost; two more seeds for the best of each. All see the
same images in the same sizes. Judged by the loss of 300 whole images that were not trained on, and, for digits, by how
many of 300 samples a classifier recognises. A result file that is there is continued.
"""

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import patch_diffusion as pd
from patch_diffusion.config import Config, Optimizer
from patch_diffusion.presets import PRESETS
from patch_diffusion.training.build import build_trainer
from patch_diffusion.training.step import learning_rate

KINDS = {
    "adamw": (Optimizer("adamw", betas=(0.9, 0.99)), (1e-3, 2e-3, 4e-3)),
    "muon": (Optimizer("muon", betas=(0.95, 0.99)), (2.5e-3, 5e-3, 1e-2)),
    "schedule_free": (Optimizer("schedule_free", betas=(0.9, 0.99)), (2.5e-3, 5e-3, 1e-2)),
}
NUM_HELD_OUT = 300
SEEDS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("task", choices=("digits", "faces"))
    parser.add_argument("--data", type=Path, help="faces to train on")
    parser.add_argument("--held-out", type=Path, help="faces that are not trained on")
    parser.add_argument("--steps", type=int, help="600 for digits, 400 for faces")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    steps = arguments.steps or (600 if arguments.task == "digits" else 400)
    if arguments.task == "digits":
        config, (train, held_out) = PRESETS["digits"], digits()
    else:
        config = PRESETS["small"]
        train = pd.open_images(arguments.data, resolution=32).buckets[0]
        held_out = some(pd.open_images(arguments.held_out, resolution=32).buckets[0], slice(NUM_HELD_OUT))
    config = replace(config, steps=steps, minutes=None, samples=0, checkpoints=1)
    comparison = Comparison(arguments.out, arguments.task, config, train, held_out)
    for kind, (_, rates) in KINDS.items():
        comparison.sweep(kind, rates)
    for kind in KINDS:
        for seed in SEEDS[1:]:
            comparison.result(kind, comparison.best(kind), seed)
    comparison.measure_cost()


class Comparison:
    """Runs of one task, and their file."""

    def __init__(self, file: Path, task: str, config: Config, train: pd.ImageSet, held_out: pd.ImageSet) -> None:
        self.file, self.config, self.train, self.held_out = file, config, train, held_out
        self.content: dict[str, Any] = {
            "command": f"python benchmarks/optimizers.py {task}",
            "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
            "hardware": f"{platform.machine()}, 1 thread",
            "torch": torch.__version__,
            "steps": config.steps,
            "batch": config.batch,
            "images": len(train),
            "held_out_images": len(held_out),
            "runs": [],
        }
        if file.exists():
            self.content |= json.loads(file.read_text(encoding="utf-8"))
        self.runs: list[dict[str, Any]] = self.content["runs"]

    def sweep(self, kind: str, rates: tuple[float, ...]) -> None:
        """Until the best rate is none of the outermost."""
        for rate in rates:
            self.result(kind, rate, 0)
        tried = sorted(run["learning_rate"] for run in self.runs if run["kind"] == kind)
        best = self.best(kind)
        if best in (tried[0], tried[-1]):
            self.sweep(kind, (best / 2 if best == tried[0] else best * 2,))

    def best(self, kind: str) -> float:
        """The learning rate with the lowest loss for the first seed."""
        screened = [run for run in self.runs if run["kind"] == kind and run["seed"] == 0]
        return min(screened, key=lambda run: run["mean"])["learning_rate"]

    def result(self, kind: str, rate: float, seed: int) -> None:
        """Train and judge, unless that was done."""
        key = {"kind": kind, "learning_rate": rate, "seed": seed}
        if any(key.items() <= run.items() for run in self.runs):
            return
        with tempfile.TemporaryDirectory() as folder:
            trainer = self.trainer(kind, rate, seed, Path(folder) / "run")
            model = trainer.fit(steps=self.config.steps)
        losses = pd.whole_image_loss(model, self.held_out)
        run = key | {
            "mean": statistics.mean(losses.values()),
            "losses": losses,
            "images": trainer.state.counters.images,
        }
        if model.num_classes:
            run["recognised"] = recognised(model)
        self.runs.append(run)
        self.write()
        print({name: value for name, value in run.items() if name != "losses"}, flush=True)

    def trainer(self, kind: str, rate: float, seed: int, out: Path) -> pd.Trainer:
        """With fresh weights."""
        config = replace(self.config, seed=seed, optimizer=replace(KINDS[kind][0], learning_rate=rate))
        return build_trainer(config, self.train, out, show=False)

    def measure_cost(self, rounds: int = 25) -> None:
        """A training step, and what moving and averaging the weights takes of it, as ratios to AdamW's step."""
        with tempfile.TemporaryDirectory() as folder:
            trainers = {kind: self.trainer(kind, 1e-3, 0, Path(folder) / kind) for kind in KINDS}
        seconds: dict[str, dict[str, list[float]]] = {kind: {"step": [], "update": []} for kind in KINDS}
        for _ in range(rounds):  # in turn, so that what else the machine does falls on all alike
            for kind, trainer in trainers.items():
                began = time.perf_counter()
                trainer.train_step(0.5)
                seconds[kind]["step"].append(time.perf_counter() - began)
                for parameter in trainer.state.network.parameters():
                    parameter.grad = torch.ones_like(parameter)
                began = time.perf_counter()
                trainer.state.optimizer.param_groups[0]["lr"] = learning_rate(trainer.config.optimizer, 0.5)
                trainer.state.optimizer.step()
                trainer.state.average.update(
                    trainer.state.denoiser, trainer.batches.batch, trainer.state.counters.images
                )
                seconds[kind]["update"].append(time.perf_counter() - began)
        whole = statistics.median(seconds["adamw"]["step"])
        self.content["cost_of_adamw_step"] = {
            kind: {part: statistics.median(times) / whole for part, times in parts.items()}
            for kind, parts in seconds.items()
        }
        self.write()
        print(self.content["cost_of_adamw_step"])

    def write(self) -> None:
        """All that was found so far."""
        self.file.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")


def some(images: pd.ImageSet, chosen: Any) -> pd.ImageSet:
    """Some of the images, in the same kind."""
    labels = None if images.labels is None else images.labels[chosen]
    return replace(images, pixels=images.pixels[chosen], labels=labels)


def digits() -> tuple[pd.ImageSet, pd.ImageSet]:
    """To train on, and held out."""
    images = pd.open_images("digits").buckets[0]
    order = np.random.default_rng(0).permutation(len(images))
    return some(images, order[NUM_HELD_OUT:]), some(images, order[:NUM_HELD_OUT])


def recognised(model: pd.Denoiser) -> float:
    """The share of 300 samples that a classifier of real digits takes for what was asked for."""
    from sklearn.svm import SVC

    real = pd.open_images("digits").buckets[0]
    assert real.labels is not None
    judge = SVC(C=10).fit(real.pixels.flatten(1).numpy() / 255, real.labels.numpy())
    samples = list(pd.generate(model, range(300)))
    made = np.stack([np.asarray(sample.pixels).ravel() / 255 for sample in samples])
    return float((judge.predict(made) == np.array([sample.label for sample in samples])).mean())


if __name__ == "__main__":
    main()
