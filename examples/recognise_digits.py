"""How many generated digits are recognised as the class that was asked for?

    python examples/recognise_digits.py runs/digits/generated

The judge is a support vector machine trained on one half of the real digits. Its own rate on the other half, which it
has never seen, is printed beside the result: no generator can be expected to do better.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.svm import SVC

import patch_diffusion as pd


def main(folder: Path) -> None:
    real = pd.open_images("digits").buckets[0]
    assert real.labels is not None
    pixels, labels = real.pixels.flatten(1).numpy() / 255, real.labels.numpy()
    half = np.random.default_rng(0).permutation(len(real)) < len(real) // 2
    judge = SVC(C=10).fit(pixels[half], labels[half])

    entries = json.loads((folder / "samples.json").read_text())["samples"]
    made = np.stack([np.asarray(Image.open(folder / entry["file"])).ravel() / 255 for entry in entries])
    asked = np.array([entry["class"] for entry in entries])
    recognised = judge.predict(made) == asked

    per_class = " ".join(f"{digit}:{recognised[asked == digit].mean():.0%}" for digit in range(10))
    print(f"recognised as the class asked for: {recognised.mean():.1%} of {len(asked)} generated digits ({per_class})")
    print(f"the judge on real digits it has not seen: {judge.score(pixels[~half], labels[~half]):.1%}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits/generated"))
