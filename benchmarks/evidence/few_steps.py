"""How good are the pictures of a few steps, after a tuning of a quarter of the training?

    python benchmarks/evidence/few_steps.py [--minutes 60] [--data CATS.zip --resolution 32] [--out FILE.json]
    python benchmarks/evidence/few_steps.py --data digits --minutes 8 --out few-digits.json

It trains a parent for some minutes, and tunes it for a share of them: by patches as the parent was trained, and on
whole images. Then it measures, of the same seeds, the kernel distance to the training images with its interval, and of
digits how many a classifier takes for what was asked for: the parent in 18 steps, in 2 plain steps of Heun's method and
in 2 steps of the solver consistency without tuning; the tuned runs in 1, 2 and 4 steps. A run that is there continues.
"""

import argparse
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import patch_diffusion as pd
from patch_diffusion.config import Config, Data, Patches
from patch_diffusion.devices import choose_device
from patch_diffusion.errors import Note
from patch_diffusion.evaluation.circumstances import circumstances
from patch_diffusion.files import write_json

RESULTS = Path(__file__).parents[1] / "results"
CATS = "../shared/data/cat-faces-64-train.zip"
STEPS = (1, 2, 4)
PARENT = {
    "18 steps": pd.Sampling(steps=18),
    "2 steps of Heun's method": pd.Sampling(steps=2, solver="heun"),
    "2 steps, not tuned": pd.Sampling(steps=2, solver="consistency", schedule="few"),
}
TUNINGS = {"tuned by patches": Config(), "tuned on whole images": Config(patches=Patches(whole=1.0))}


def main() -> None:
    """Train, tune and measure, and write a table and the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default=CATS)
    parser.add_argument("--resolution", type=int, help="default: 32 for cat faces, else the images' own")
    parser.add_argument("--minutes", type=float, default=60.0, help="of the parent")
    parser.add_argument("--images", type=int, help="the parent's budget in place of minutes")
    parser.add_argument("--share", type=float, default=0.25, help="of the parent's budget, for each tuning")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--extractor", default="random")
    parser.add_argument("--few-steps", type=int, default=2, help="the steps of sampling that are tuned for")
    parser.add_argument("--runs", type=Path, default=Path("runs/few_steps"))
    parser.add_argument("--out", type=Path, default=RESULTS / "few-steps-cpu.json")
    given = parser.parse_args()
    warnings.simplefilter("ignore", Note)  # that some of these ways to sample are no good is the question
    name = Path(given.data).stem
    resolution = given.resolution or (32 if given.data == CATS else None)
    parent = given.runs / name / "parent"
    config = Config(data=Data(given.data, resolution=resolution), samples=0, track=(), images=given.images)
    config = config if given.images else replace(config, minutes=given.minutes)
    pd.train(config, parent)
    rows = measured(parent, PARENT, given)
    minutes = None if given.images else given.share * given.minutes
    images = int(given.share * given.images) if given.images else None
    for title, options in TUNINGS.items():
        run = given.runs / name / title.replace(" ", "-")
        pd.tune(parent, run, steps=given.few_steps, minutes=minutes, images=images, config=replace(options, samples=0))
        found = measured(run, {f"{num} steps" if num > 1 else "1 step": pd.Sampling(steps=num) for num in STEPS}, given)
        rows |= {f"{title}, {label}": row for label, row in found.items()}
    told = {name: (str(value) if isinstance(value, Path) else value) for name, value in vars(given).items()}
    result = {"settings": told, "rows": rows, **circumstances(choose_device())}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.out, result)


def measured(run: Path, ways: dict[str, pd.Sampling], given: argparse.Namespace) -> dict[str, Any]:
    """Return the kernel distance, and the share of digits that are recognised, of each way to sample; print them."""
    model, rows = pd.load(run), {}
    progress = pd.describe(run)["progress"]
    for label, sampling in ways.items():
        options = pd.EvaluationOptions(samples=given.samples, metrics=("kernel",))
        found = pd.evaluate(run, extractor=given.extractor, sampling=sampling, options=options)
        rows[label] = {"run": run.name, "kernel": found.measures["kernel"].as_dict()}
        rows[label] |= {name: progress[name] for name in ("images", "flops", "seconds")}
        kernel = found.measures["kernel"]
        line = f"{run.name:<24} {label:<26} kernel {kernel.value:.5f} [{kernel.low:.5f}, {kernel.high:.5f}]"
        if given.data == "digits":
            rows[label]["recognised"] = recognised(model, sampling)
            line += f"  recognised {rows[label]['recognised']:.1%}"
        print(line, flush=True)
    return rows


def recognised(model: pd.Denoiser, sampling: pd.Sampling, num: int = 1000) -> float:
    """Return the share of samples that a classifier of real digits takes for what was asked for."""
    from sklearn.svm import SVC

    real = pd.open_images("digits").buckets[0]
    assert real.labels is not None
    judge = SVC(C=10).fit(real.pixels.flatten(1).numpy() / 255, real.labels.numpy())
    samples = list(pd.generate(model, range(num), sampling))
    made = np.stack([np.asarray(sample.pixels).ravel() / 255 for sample in samples])
    return float((judge.predict(made) == np.array([sample.label for sample in samples])).mean())


if __name__ == "__main__":
    main()
