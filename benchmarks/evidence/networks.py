"""Which kind of network, and which prediction, gives the lowest held-out loss for a number of operations?

    python benchmarks/evidence/networks.py [--budgets 1e13 1e14] [--data cats emoji] [--sides 32] [--seeds 0 1 2]

Every training of a budget spends the same operations on one thread, with the network of its kind whose parameters are
nearest to those that the law of size says. The question ``rates`` compares learning rates of each kind at the smallest
budget; ``kinds`` then compares the kinds at all budgets, each with its best rate for these images. Rows are written and
skipped as by ``sizes.py``. Losses are in the weights of EDM, so that those of both predictions compare.
"""

import argparse
import csv
import json
import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from sizes import DATA
from trials import RESULTS, SHARED, Arm, Scale, row_of_trial, write_rows

from patch_diffusion.config import Network
from patch_diffusion.runs.model import build_network
from patch_diffusion.streams import uniform
from patch_diffusion.training.choices.law import worth
from patch_diffusion.training.choices.size import networks

OUT = RESULTS / "networks-cpu.json"
COMMAND = "python benchmarks/evidence/networks.py --questions rates kinds"
SIDES = {"cats": (32, 64), "cifar10": (32,), "emoji": (32, 64)}
EMOJI = {name: f"runs/networks/emoji-{name}.zip" for name in ("train", "heldout")}
CHANNELS = {"cats": 3, "cifar10": 3, "emoji": 4}
HELD_OUT = 0.1  # share of the captions of emoji

_CLEAN = {"process": "x_prediction", "p_mean": None, "p_std": None}
KINDS: dict[str, dict[str, Any]] = {
    "ddpmpp": {"network": {"kind": "ddpmpp"}},
    "edm2": {"network": {"kind": "edm2"}},
    "dit": {"network": {"kind": "dit"}},
    "dit, x": {"network": {"kind": "dit"}, "noise": _CLEAN},
    "dit, x, velocity": {"network": {"kind": "dit"}, "noise": {**_CLEAN, "weight": "process"}},
}
"""The options of each kind: network, prediction, and weight of the loss, else the learned one."""
RATES = {"edm2": (0.025, 0.05, 0.1)}
USUAL_RATES = (0.0025, 0.005, 0.01)


@dataclass(frozen=True)
class Trial:
    """One training: images and their side, ``budget`` in operations, a kind of `KINDS`, learning rate and seed."""

    data: str
    side: int
    budget: float
    kind: str
    rate: float
    seed: int = 0


def rates(data: str, side: int, budgets: Sequence[float], seeds: Sequence[int], rows: list[Any]) -> Iterator[Trial]:
    """Learning rates of each kind at the smallest budget, with the first seed."""
    for kind in KINDS:
        for rate in RATES.get(kind, USUAL_RATES):
            yield Trial(data, side, min(budgets), kind, rate, seeds[0])


def kinds(data: str, side: int, budgets: Sequence[float], seeds: Sequence[int], rows: list[Any]) -> Iterator[Trial]:
    """All kinds, each with the rate that is best in the rows for these images at the smallest budget."""
    for budget in budgets:
        for kind in KINDS:
            asked = {"data": data, "side": side, "budget": min(budgets), "kind": kind, "seed": seeds[0]}
            found = [row for row in rows if {name: row["trial"][name] for name in asked} == asked]
            middle = RATES.get(kind, USUAL_RATES)[1]
            best = min(found, key=lambda row: row["loss"])["trial"]["rate"] if found else middle
            yield from (Trial(data, side, budget, kind, best, seed) for seed in seeds)


QUESTIONS = {"rates": rates, "kinds": kinds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--budgets", type=float, nargs="+", default=[1e13, 1e14], help="operations of a training")
    parser.add_argument("--data", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64], help="of the images, where they are as large")
    parser.add_argument("--questions", nargs="+", choices=list(QUESTIONS), default=list(QUESTIONS))
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="these alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--together", type=int, default=2, help="trainings beside each other")
    parser.add_argument("--runs", type=Path, default=Path("runs/networks"), help="folder of the trained models")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if "emoji" in arguments.data:
        split_emoji()
    for question in arguments.questions:
        rows = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
        trials = [
            trial
            for data in arguments.data
            for side in SIDES[data]
            if side in arguments.sides
            for trial in QUESTIONS[question](data, side, arguments.budgets, arguments.seeds, rows)
            if trial.kind in arguments.kinds
        ]
        write_rows(trials, partial(row_of, runs=arguments.runs), arguments.out, COMMAND, arguments.together)


def row_of(trial: Trial, runs: Path) -> dict[str, Any]:
    """Train, and measure."""
    images = {"data": EMOJI["train"], "held_out": EMOJI["heldout"]} if trial.data == "emoji" else DATA[trial.data]
    scale = Scale(
        trial.budget,
        samples=0,
        judges=256,
        together=1,
        options={"engine": {"threads": 1}, "batch": 8, "patches": {"whole": 0.5 if trial.side < 64 else 0.25}},
        **{**images, "resolution": trial.side},
    )
    kind = KINDS[trial.kind]
    network = network_of(kind["network"]["kind"], trial.budget, CHANNELS[trial.data], trial.side)
    options = {**kind, "network": asdict(network), "optimizer": {"learning_rate": trial.rate}}
    return row_of_trial(trial, Arm(trial.kind, options), scale, runs)


@cache
def network_of(kind: str, budget: float, channels: int, side: int) -> Network:
    """The network of a kind whose number of parameters is nearest to what the budget is worth."""
    wanted, best, least = worth(budget, side**2).parameters, None, math.inf
    for network in networks(Network(kind=kind)):  # pyright: ignore[reportArgumentType]
        with torch.device("meta"):
            parameters = build_network(network, channels, 0, coords=True).parameters()
        apart = abs(math.log(sum(weight.numel() for weight in parameters) / wanted))
        if apart > least:  # they are in the order of their size
            break
        best, least = network, apart
    assert best is not None
    return best


def split_emoji() -> None:
    """Write the emoji to train on and those that judge; the skin tones of one, which share a caption, stay together."""
    if all(Path(path).exists() for path in EMOJI.values()):
        return
    with (SHARED / "emoji-64.csv").open(encoding="utf-8", newline="") as table:
        captions = {row["file"]: row["caption"] for row in csv.DictReader(table)}
    Path(EMOJI["train"]).parent.mkdir(parents=True, exist_ok=True)
    parts = {name: zipfile.ZipFile(path, "w") for name, path in EMOJI.items()}
    with zipfile.ZipFile(SHARED / "emoji-64.zip") as everything:
        for name in sorted(everything.namelist()):
            caption = captions.get(Path(name).name)
            if caption is not None:
                held_out = uniform(0, caption) < HELD_OUT
                parts["heldout" if held_out else "train"].writestr(Path(name).name, everything.read(name))
    for part in parts.values():
        part.close()


if __name__ == "__main__":
    main()
