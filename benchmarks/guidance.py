"""Which guidance helps, and how strong should it be?

    python benchmarks/guidance.py RUN --data DATA --extractor FILE --json results/guidance-NAME-cpu.json

Samples of a run under each kind of guidance at several strengths are compared with the images of DATA, by the Frechet
and the kernel distance of their features; each cell is the mean and the standard deviation over sets of other seeds.
Autoguidance leads away from the run's own checkpoint after ``--early`` of the training, or from its longest average.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from measuring import circumstances

import patch_diffusion as pd
from patch_diffusion.cli.choosing import open_guide

STRENGTHS = (1.25, 1.5, 2.0, 3.0)
MEASURES = ("frechet", "kernel")


def settings_of(run: Path, early: float, kinds: list[str]) -> list[dict[str, Any]]:
    """Kinds and strengths, none at all first."""
    model = pd.load(run)
    checkpoints = sorted((run / "checkpoints").glob("step-????????"))
    step = int(checkpoints[round(early * (len(checkpoints) - 1))].name.removeprefix("step-"))
    guides = {"class": "class"} if model.num_classes and model.label_dropout else {}
    guides |= {"crops": "crops", "checkpoint": f"step:{step}"}
    chosen = {name: guide for name, guide in guides.items() if not kinds or name in kinds}
    cells: list[dict[str, Any]] = [{"kind": "none", "guide": "class", "guidance": 1.0}]
    cells += [
        {"kind": name, "guide": guide, "guidance": strength} for name, guide in chosen.items() for strength in STRENGTHS
    ]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--data", metavar="DATA", help="images to compare with; the run's own if left out")
    parser.add_argument("--extractor", default="random", metavar="KIND|FILE")
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3, help="sets of samples")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--solver", default="dpm_solver_2m")
    parser.add_argument("--early", type=float, default=0.3, help="share of the training of the weaker checkpoint")
    parser.add_argument("--kinds", default="", help="of class, crops, checkpoint; all if left out")
    parser.add_argument(
        "--interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="guidance at these levels only"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made = circumstances()  # of the code that runs, whatever is committed meanwhile
    began, results = time.perf_counter(), []
    for cell in settings_of(options.run, options.early, options.kinds.split(",") if options.kinds else []):
        guide = open_guide(cell["guide"], options.run, device="auto")
        interval = tuple(options.interval) if options.interval and cell["guidance"] != 1 else None
        found = [
            pd.evaluate(
                options.run,
                options.data,
                extractor=options.extractor,
                sampling=pd.Sampling(
                    steps=options.steps,
                    solver=options.solver,
                    guidance=cell["guidance"],
                    guide=guide,
                    guidance_interval=interval,
                ),
                options=pd.EvaluationOptions(metrics=MEASURES, samples=options.samples, seed=seed),
            )
            for seed in range(options.seeds)
        ]
        of_seeds = {name: [one.measures[name].value for one in found] for name in MEASURES}
        results.append(cell | of_seeds)
        means = "  ".join(
            f"{name} {statistics.mean(values):.4g} +- {statistics.stdev(values) if len(values) > 1 else 0:.2g}"
            for name, values in of_seeds.items()
        )
        print(f"{cell['kind']:<11} {cell['guidance']:<5} {means}  {time.perf_counter() - began:.0f} s", flush=True)
        if options.json:
            names = ("samples", "seeds", "steps", "solver", "interval")
            told = {name: getattr(options, name) for name in names}
            told |= {"run": options.run.name, "extractor": Path(options.extractor).name}
            images = found[0].measures["frechet"].settings
            told |= {"training": _training(options.run), "reference": images, **made}
            options.json.write_text(json.dumps({**told, "results": results}, indent=1) + "\n")


def _training(run: Path) -> dict[str, Any]:
    """What the run had seen."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    last = [line for line in lines if "loss" in line][-1]
    return {name: last[name] for name in ("step", "images", "patches", "seconds")}


if __name__ == "__main__":
    main()
