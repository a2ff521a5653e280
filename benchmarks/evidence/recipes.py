"""Which way to train gives the lowest held-out loss for as many operations?

    python benchmarks/evidence/recipes.py [--arms "even noise" "batch 8"] [--seeds 0 1 2] [--data FILE --held-out FILE]

Each arm differs from the preset ``small`` in one thing; what has no option is in changes.py.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent / "evidence"))

from trials import Arm, run

BASE = "batch 8"
LEARNED = {"weight": "learned"}


def arm(name: str, change: str | None = None, **options: Any) -> Arm:
    """One that is compared with the preset on half its batch, which the first of these trials found to be better."""
    options = {"batch": 8, **options}
    return Arm(name, options, against=None if name == BASE else BASE, repeated=True, change=change)


def rate(value: float) -> dict[str, Any]:
    """Options of a learning rate."""
    return {"optimizer": {"learning_rate": value}}


def now(name: str, change: str | None = None, **options: Any) -> Arm:
    """One that differs from the preset as these trials have left it, on half its batch."""
    optimizer = {"decay": "linear", **options.pop("optimizer", {})}
    return arm(f"now, {name}", change, **{"noise": {**LEARNED, "p_std": 1.6}, **options}, optimizer=optimizer)


FEW_WHOLE = {"whole": 0.25}

ARMS = [
    arm(BASE),
    arm("whole images", patches={"whole": 1}, **rate(1e-2)),
    # The step
    arm("batch 16", batch=16),
    arm("rate 0.01", **rate(1e-2)),
    arm("rate 0.02", **rate(2e-2)),
    arm("batch 4, rate 0.01", batch=4, **rate(1e-2)),
    # What is drawn, and what counts
    arm("even noise", "even noise"),
    arm("even places", "even places"),
    arm("noise by size", "noise by size"),
    arm("matched noise", "matched noise"),
    arm("whole counts twice", "whole counts twice"),
    arm("learned weight", noise=LEARNED),
    arm("p_std 1.6", noise={"p_std": 1.6}),
    arm("p_mean -0.4", noise={"p_mean": -0.4}),
    arm("learned weight, p_std 1.6", noise={**LEARNED, "p_std": 1.6}),
    arm("learned weight, p_mean -0.4", noise={**LEARNED, "p_mean": -0.4}),
    arm("whole images, learned weight, p_std 1.6", patches={"whole": 1}, noise={**LEARNED, "p_std": 1.6}, **rate(1e-2)),
    # The sizes
    arm("p = 0.75", patches={"whole": 0.75}),
    arm("halves alone", patches={"sizes": {"1/2": 1.0}}),
    arm("halved", "halved"),
    arm("all sizes", "all sizes"),
    arm("last on whole", "last on whole"),
    arm("small to large", patches={"kind": "progressive"}),
    arm("growth none", patches={"growth": "none"}),
    arm("growth area", patches={"growth": "area"}),
    arm("p = 0.25", patches={"whole": 0.25}),
    arm("p = 0.25, last on whole", "last on whole", patches={"whole": 0.25}),
    arm("quarters alone", patches={"sizes": {"1/4": 1.0}}),
    arm("three quarters too", patches={"sizes": {"3/4": 0.3, "1/2": 0.4, "1/4": 0.3}}),
    arm("weight by area", patches={"weight": "area"}),
    # Averages and numbers
    arm("shorter average", ema={"ramp": 0.02}),
    arm("longer average", ema={"ramp": 0.1}),
    arm("linear decay", optimizer={"decay": "linear"}),
    arm(
        "learned weight, p_std 1.6, linear decay",
        noise={**LEARNED, "p_std": 1.6},
        optimizer={"decay": "linear"},
    ),
    arm("bf16", engine={"precision": "bf16"}),
    # What is tied to the size, and when; with what has won above
    now("whole images", patches={"whole": 1, "coords": False}, **rate(1e-2)),
    now("whole images, batch 4", batch=4, patches={"whole": 1, "coords": False}),
    now("batch 16", batch=16),
    now("batch 4", batch=4),
    now("p = 0.1", patches={"whole": 0.1}),
    now("p = 0.25, batch 4", batch=4, patches=FEW_WHOLE),
    now("p = 0.25", patches=FEW_WHOLE),
    now("p = 0.25, batch 16", batch=16, patches=FEW_WHOLE),
    now("p = 0.25, rate 0.01", patches=FEW_WHOLE, **rate(1e-2)),
    now("p = 0.25, noise by size 0.6", "noise by size 0.6", patches=FEW_WHOLE),
    now("p = 0.25, noise by size 1", "noise by size 1", patches=FEW_WHOLE),
    now("p = 0.25, more noise on whole", "more noise on whole", patches=FEW_WHOLE),
    now("p = 0.25, other noise by size", "other noise by size", patches=FEW_WHOLE),
    now("other noise by size", "other noise by size"),
    now("p = 0.1, other noise", "other noise on few whole", patches={"whole": 0.1}),
    now("p = 0.25, ramp", "ramp", patches=FEW_WHOLE),
    now("p = 0.4, ramp", "ramp", patches={"whole": 0.4}),
    now("p = 0.25, blurred", "blurred", patches=FEW_WHOLE),
    now("p = 0.4, blurred", "blurred", patches={"whole": 0.4}),
]

if __name__ == "__main__":
    run(__doc__, ARMS, "recipes")
