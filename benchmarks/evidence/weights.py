"""Should a patch count by the mean over its pixels, or by their sum, as in the published implementation?

python benchmarks/evidence/weights.py
"""

from trials import Arm, run

ARMS = [
    Arm(
        f"p = {share:g}, {weight}",
        {"patches": {"whole": share, "weight": weight}},
        against=None if weight == "patch" else f"p = {share:g}, patch",
        repeated=share == 0.5,
    )
    for share in (0.5, 0.25)
    for weight in ("patch", "area")
]

if __name__ == "__main__":
    run(__doc__, ARMS, "weights")
