"""Does flow matching learn as much as EDM for as many operations?

    python benchmarks/evidence/flow.py --seeds 0 1 2

Each process with the noise levels and the weights it was published with, and both with those of this package's
defaults. The held-out loss is that of the denoised images at the same noise levels with EDM's weights, for all arms.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent / "evidence"))

from trials import Arm, run

DEFAULTS = {"weight": "learned", "p_mean": 0.0, "p_std": 1.6}


def arm(name: str, against: str | None, **noise: Any) -> Arm:
    """One that differs from the preset on half its batch in the noise alone."""
    return Arm(name, {"batch": 8, "noise": noise}, against=against, repeated=True)


ARMS = [
    arm("edm", None, **DEFAULTS),
    arm("flow", "edm", process="flow", **DEFAULTS),
    arm("flow, logit-normal 0 1", "edm", **{**DEFAULTS, "process": "flow", "p_std": 1.0}),
    arm("edm, as published", "edm", weight="process", p_mean=-1.2, p_std=1.2),
    arm("flow, as published", "edm, as published", process="flow", weight="process", p_mean=0.0, p_std=1.0),
]

if __name__ == "__main__":
    run(__doc__, ARMS, "flow")
