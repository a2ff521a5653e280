"""With few images, are patches better than whole images, and do they copy less?

    python benchmarks/evidence/small_data.py

The same operations for every number of images, so that few are seen more often. Samples are compared with all images of
the data, and looked at for copies of those that were trained on.
"""

from trials import Arm, run

NUMBERS = (500, 1500, None)

ARMS = [
    Arm(
        f"{'all' if number is None else f'{number:,}'}, {name}",
        {"patches": {"whole": whole}},
        against=None if whole == 0.5 else f"{'all' if number is None else f'{number:,}'}, patches",
        images=number,
        repeated=number is None,
    )
    for number in NUMBERS
    for name, whole in (("patches", 0.5), ("whole", 1))
]

if __name__ == "__main__":
    run(__doc__, ARMS, "small_data")
