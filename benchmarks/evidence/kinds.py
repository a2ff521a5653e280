"""Should sizes be drawn per step, go from small to large, or be one alone?

python benchmarks/evidence/kinds.py
"""

from trials import Arm, run

BASE = "stochastic"

ARMS = [
    Arm(BASE, {"patches": {"whole": 0.5}}, repeated=True),
    Arm("progressive", {"patches": {"whole": 0.5, "kind": "progressive"}}, against=BASE),
    Arm("fixed, halves", {"patches": {"whole": 0.0, "sizes": {"1/2": 1.0}, "kind": "fixed"}}, against=BASE),
    Arm("fixed, whole", {"patches": {"whole": 1}}, against=BASE, repeated=True),
]

if __name__ == "__main__":
    run(__doc__, ARMS, "kinds")
