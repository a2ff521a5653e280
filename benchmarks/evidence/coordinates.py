"""What do the coordinates do: always given, never, in training alone, or in sampling alone?

    python benchmarks/evidence/coordinates.py

"never" has no channels for them. "training alone" is the model of "always", whose coordinate channels hold zeros when
it is measured; "sampling alone" had zeros there in training, so that the weights behind them are those it began with.
"""

from trials import Arm, run

BASE = "always"

ARMS = [
    Arm(BASE, {"patches": {"whole": 0.5}}, repeated=True),
    Arm("never", {"patches": {"whole": 0.5, "coords": False}}, against=BASE),
    Arm("training alone", {"patches": {"whole": 0.5}}, against=BASE, coords_hidden="sampling"),
    Arm("sampling alone", {"patches": {"whole": 0.5}}, against=BASE, coords_hidden="training"),
]

if __name__ == "__main__":
    run(__doc__, ARMS, "coordinates")
