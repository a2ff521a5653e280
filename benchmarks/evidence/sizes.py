"""Which width, batch, rate and share of whole images give the lowest held-out loss for a number of operations?

    python benchmarks/evidence/sizes.py [--budgets 1e12 1e13] [--data cats] [--questions widths steps] [--out FILE.json]

Each training spends the same operations on one thread, two beside each other, so a busy machine changes only the
seconds. A row is written as soon as its training is done, and what the file already has is not trained again.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trials import RESULTS, SHARED, Arm, Scale, row_of_trial, write_rows

OUT = RESULTS / "sizes-cpu.json"
COMMAND = "python benchmarks/evidence/sizes.py --questions widths steps shares depths"
BUDGETS = (1e12, 1e13, 1e14)
WIDTHS = {1e12: (4, 8, 16), 3e12: (8,), 1e13: (8, 16, 32), 3e13: (12, 16, 24), 1e14: (16, 32, 48)}
"""The widths that are compared at each budget: three around the best."""


@dataclass(frozen=True)
class Trial:
    """One training: ``budget`` in operations, and the options that differ from the preset ``small``."""

    data: str
    budget: float
    width: int
    batch: int = 8
    rate: float = 5e-3
    whole: float = 0.5
    blocks: int = 1
    seed: int = 0

    def arm(self) -> Arm:
        """The options."""
        return Arm(
            self.data,
            {
                "network": {"width": self.width, "blocks": self.blocks},
                "batch": self.batch,
                "optimizer": {"learning_rate": self.rate},
                "patches": {"whole": self.whole},
            },
        )


DATA = {
    "cats": {
        "data": str(SHARED / "cat-faces-64-train.zip"),
        "held_out": str(SHARED / "cat-faces-64-heldout.zip"),
        "resolution": 64,
    },
    "cifar10": {
        "data": str(SHARED / "cifar10-32-train.zip"),
        "held_out": str(SHARED / "cifar10-32-heldout.zip"),
        "resolution": 32,
    },
    # The two zips that evidence/tiles.py makes of the photographs.
    "tiles": {"data": "runs/tiles/train.zip", "held_out": "runs/tiles/heldout.zip", "resolution": 64},
}
"""The images, with those that judge, and their side in pixels."""

USUAL_WHOLE = {"cats": 0.25, "cifar10": 0.5, "tiles": 0.25}


def widths(data: str, budget: float) -> Iterator[Trial]:
    """Networks of several widths, with the usual step."""
    for width in WIDTHS[budget]:
        yield Trial(data, budget, width, whole=USUAL_WHOLE[data])


def steps(data: str, budget: float) -> Iterator[Trial]:
    """Batches and learning rates, with a width that is among the best at this budget."""
    width = WIDTHS[budget][len(WIDTHS[budget]) // 2]
    pairs = [(2, 5e-3), (4, 5e-3), (16, 5e-3), (32, 5e-3), (4, 2.5e-3), (8, 2.5e-3), (8, 1e-2), (16, 1e-2), (32, 1e-2)]
    for batch, rate in pairs:
        yield Trial(data, budget, width, batch=batch, rate=rate, whole=USUAL_WHOLE[data])


def shares(data: str, budget: float) -> Iterator[Trial]:
    """Shares of whole images."""
    width = WIDTHS[budget][len(WIDTHS[budget]) // 2]
    for whole in (0.1, 0.25, 0.5, 1.0):
        if whole != USUAL_WHOLE[data]:
            yield Trial(data, budget, width, whole=whole)


def depths(data: str, budget: float) -> Iterator[Trial]:
    """Two blocks a level, in a width that makes about as many parameters as one block."""
    width = WIDTHS[budget][len(WIDTHS[budget]) // 2]
    yield Trial(data, budget, round(0.8 * width / 4) * 4, blocks=2, whole=USUAL_WHOLE[data])


QUESTIONS = {"widths": widths, "steps": steps, "shares": shares, "depths": depths}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS), help="operations of a training")
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=["cats", "cifar10"])
    parser.add_argument("--questions", nargs="+", choices=list(QUESTIONS), default=["widths", "steps"])
    parser.add_argument("--widths", type=int, nargs="+", help="these in place of the usual ones, for widths")
    parser.add_argument("--together", type=int, default=2, help="trainings beside each other")
    parser.add_argument("--runs", type=Path, default=Path("runs/sizes"), help="folder of the trained models")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if arguments.widths:
        WIDTHS.update(dict.fromkeys(arguments.budgets, tuple(arguments.widths)))
    trials = [
        trial
        for question in arguments.questions
        for budget in arguments.budgets
        for data in arguments.data
        for trial in QUESTIONS[question](data, budget)
    ]
    write_rows(trials, partial(row_of, runs=arguments.runs), arguments.out, COMMAND, arguments.together)


def row_of(trial: Trial, runs: Path) -> dict[str, Any]:
    """Train, and measure."""
    scale = Scale(
        trial.budget, samples=0, judges=256, together=1, options={"engine": {"threads": 1}}, **DATA[trial.data]
    )
    return row_of_trial(trial, trial.arm(), scale, runs)


if __name__ == "__main__":
    main()
