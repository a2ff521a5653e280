"""How large a share p of the steps should be on whole images?

    python benchmarks/evidence/whole_share.py [--seeds 0 1 2]

All arms have the preset's batch and rate, but for one more of whole images alone with the batch and the rate that
sweeps of `race` have found for those.
"""

from trials import Arm, run

SHARES = (0, 0.1, 0.25, 0.5, 0.75, 1)
BASE = "p = 0.5"

ARMS = [
    Arm(
        f"p = {share:g}",
        {"patches": {"whole": share}},
        against=None if share == 0.5 else BASE,
        repeated=share in (0.5, 1),
    )
    for share in SHARES
]
ARMS.append(
    Arm("p = 1, own batch", {"patches": {"whole": 1}, "batch": 8, "optimizer": {"learning_rate": 1e-2}}, against=BASE)
)

if __name__ == "__main__":
    run(__doc__, ARMS, "whole_share")
