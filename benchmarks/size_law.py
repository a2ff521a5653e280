"""The law of size, fitted to trainings at equal operations: what to write into `training/choices/law.py`.

    python benchmarks/size_law.py [--sizes benchmarks/results/sizes-cpu.json] [--out FILE.json]

For each data set and budget a parabola through the losses of three widths, in the logarithm of the parameters, has its
lowest point at the best network. A line through these points, in logarithms of parameters and of operations for images
of 64 x 64, is the law; its residuals are the distances from it. The critical batch is the one for which the losses of
several batches fit best to L(B) = c - s ln(1 / (1 + B / C)), where s is how much a loss falls with the logarithm of the
operations, between the budgets of the same network.
"""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from measuring import circumstances

RESULTS = Path(__file__).parent / "results"
SIDES = {"cats": 64, "cifar10": 32, "tiles": 64}
USUAL = {"batch": 8, "rate": 5e-3, "blocks": 1, "seed": 0}
WHOLE = {"cats": 0.25, "cifar10": 0.5, "tiles": 0.25}
FITTED = ("cats", "cifar10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=Path, default=RESULTS / "sizes-cpu.json")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = json.loads(arguments.sizes.read_text())["rows"]
    best = best_networks(rows)
    found = {"best": best, **law(best), "batches": batches(rows)}
    for each in best:
        print(
            "{data:>8} {budget:.0e}: {parameters:>10,.0f} parameters, loss {loss:.4f}, {aside:+.0%} of the law".format(
                **each, aside=each["parameters"] / at(found, like(each)) - 1
            )
        )
    print("law: parameters at", {f"{x:.0e}": round(at(found, x)) for x in (1e12, 1e13, 1e14)}, "slope", found["slope"])
    for each in found["batches"]:
        print("{data:>8} {budget:.0e}: critical batch {critical:.1f} ({losses})".format(**each))
    if arguments.out:
        arguments.out.write_text(json.dumps({**circumstances(), **found}, indent=1) + "\n")


def best_networks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each data set and budget the network at the lowest point of a parabola through the best three."""
    found = []
    for (data, budget), several in grouped(rows, ("data", "budget")).items():
        usual = {
            row["trial"]["width"]: row
            for row in several
            if {name: row["trial"][name] for name in USUAL} == USUAL and row["trial"]["whole"] == WHOLE[data]
        }
        widths = sorted(usual)
        if data not in FITTED or len(widths) < 3:
            continue
        place = min(max(widths.index(min(usual, key=lambda width: usual[width]["loss"])), 1), len(widths) - 2)
        near = [usual[width] for width in widths[place - 1 : place + 2]]
        x, y = np.log([row["parameters"] for row in near]), np.array([row["loss"] for row in near])
        a, b, c = np.polyfit(x, y, 2)
        low = float(np.clip(-b / (2 * a), x[0], x[-1])) if a > 0 else float(x[y.argmin()])
        found.append(
            {
                "data": data,
                "budget": budget,
                "widths": {str(row["trial"]["width"]): row["loss"] for row in near},
                "parameters": math.exp(low),
                "loss": float(a * low**2 + b * low + c),
            }
        )
    return found


def law(best: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the line through the best networks, in logarithms, with its residuals."""
    x, y = np.log([like(each) for each in best]), np.log([each["parameters"] for each in best])
    slope, begin = np.polyfit(x, y, 1)
    residuals = y - (begin + slope * x)
    return {
        "slope": float(slope),
        "begin": float(begin),
        "residuals": {
            f"{each['data']}, {each['budget']:.0e}": float(r) for each, r in zip(best, residuals, strict=True)
        },
    }


def at(found: dict[str, Any], operations: float) -> float:
    """Return the parameters that the line gives."""
    return math.exp(found["begin"] + found["slope"] * math.log(operations))


def like(each: dict[str, Any]) -> float:
    """Return the operations of a training, as those of one on images of 64 x 64."""
    return each["budget"] * 64**2 / SIDES[each["data"]] ** 2


def batches(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each data set and budget the critical batch, and the best rate of each batch."""
    found = []
    for (data, budget), several in grouped(rows, ("data", "budget")).items():
        by_width = grouped(several, ("width",))
        for (width,), same in by_width.items():
            same = [row for row in same if row["trial"]["whole"] == WHOLE[data] and row["trial"]["blocks"] == 1]
            best = {
                batch: min(each, key=lambda row: row["loss"]) for (batch,), each in grouped(same, ("batch",)).items()
            }
            others = [row for row in rows if row["trial"]["data"] == data and row["trial"]["width"] == width]
            by_budget = {
                row["trial"]["budget"]: row["loss"]
                for row in others
                if {name: row["trial"][name] for name in USUAL} == USUAL and row["trial"]["whole"] == WHOLE[data]
            }
            if len(best) < 3 or len(by_budget) < 2:
                continue
            known = sorted(by_budget)
            place = min(max(known.index(budget), 1), len(known) - 1)
            low, high = known[place - 1], known[place]
            falls = (by_budget[low] - by_budget[high]) / math.log(high / low)
            tried = sorted(best)
            losses = np.array([best[batch]["loss"] for batch in tried])
            errors = {}
            for critical in np.geomspace(0.5, 500, 200):
                more = falls * np.log1p(np.array(tried) / critical)
                errors[float(critical)] = float(((losses - more) - (losses - more).mean()).std())
            found.append(
                {
                    "data": data,
                    "budget": budget,
                    "width": width,
                    "falls": falls,
                    "critical": min(errors, key=errors.__getitem__),
                    "error": min(errors.values()),
                    "losses": {str(batch): best[batch]["loss"] for batch in tried},
                    "rates": {str(batch): best[batch]["trial"]["rate"] for batch in tried},
                }
            )
    return found


def grouped(rows: list[dict[str, Any]], names: tuple[str, ...]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Return the rows by the values of some options of their trials."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[tuple(row["trial"][name] for name in names)].append(row)
    return found


if __name__ == "__main__":
    main()
