"""Do the settings that `train` chooses by itself learn more in the same time than the preset small?

    python benchmarks/defaults.py --data CATS.zip --held-out OTHERS.zip [--minutes 3 60] [--out FILE.json]

It runs the command `train DATA --minutes N` with and without `--preset small`, one after the other on a quiet machine,
and measures the loss of images that neither was trained on, and the difference image by image.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import circumstances

import patch_diffusion as pd
from patch_diffusion.denoise.whole_image import losses_of_images
from patch_diffusion.evaluation.intervals import interval_of_mean

ARMS = {"chosen": [], "small": ["--preset", "small"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--minutes", type=float, nargs="+", default=[3, 60])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--judges", type=int, default=256)
    parser.add_argument("--runs", type=Path, help="folder of the trained models; else they are deleted")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        runs = arguments.runs or Path(folder)
        for minutes in arguments.minutes:
            rows.append(compare(arguments, minutes, runs))
            print(json.dumps(rows[-1], indent=1), flush=True)
            if arguments.out:
                settings = {"seed": arguments.seed, "judges": arguments.judges, "resolution": arguments.resolution}
                content = {**circumstances(), "settings": settings, "budgets": rows}
                arguments.out.write_text(json.dumps(content, indent=1) + "\n")


def compare(arguments: argparse.Namespace, minutes: float, runs: Path) -> dict[str, Any]:
    """Train both ways for so many minutes, and return the loss of each, and the difference."""
    found, losses = {}, {}
    size = [] if arguments.resolution is None else ["--resolution", str(arguments.resolution)]
    for name, words in ARMS.items():
        run = runs / f"{name}-{minutes:g}"
        options = [arguments.data, *size, "--minutes", f"{minutes:g}", "--seed", str(arguments.seed), *words]
        subprocess.run([sys.executable, "-m", "patch_diffusion", "train", *options, "--out", str(run)], check=True)
        told = pd.describe(run)
        options = {"resolution": tuple(told["model"]["resolution"]), "classes": told["model"]["num_classes"] > 0}
        judges = pd.open_images(arguments.held_out, **options).buckets[0]
        losses[name] = torch.stack(list(losses_of_images(pd.load(run), judges, most=arguments.judges).values())).mean(0)
        config = told["options"]
        found[name] = {
            "loss": interval_of_mean(losses[name].double(), 0).as_dict(),
            "parameters": told["model"]["parameters"],
            "network": {key: value for key, value in config["network"].items() if value is not None},
            "batch": config["batch"],
            "whole": config["patches"]["whole"],
            "progress": told["progress"],
        }
    apart = losses["chosen"] / losses["small"].mean() - losses["small"] / losses["small"].mean()
    return {"minutes": minutes, **found, "difference": interval_of_mean(apart.double(), 0).as_dict()}


if __name__ == "__main__":
    main()
