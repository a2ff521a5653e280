"""Is a model that was trained to copy flagged, and one that was not?

    python benchmarks/copying.py [--steps 3000] [--out FILE.json]

Two models of the same network, digits: one of 20 images, trained until it knows them by heart, one of all but a few
hundred. The same held-out digits stand beside both.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from measuring import circumstances

import patch_diffusion as pd
from patch_diffusion.config import Noise, Optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=3000, help="of training, of each of the two")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--pairs", type=Path, help="folder for pictures of the closest pairs")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    digits = pd.open_images("digits").buckets[0]
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    held_out = pd.ImageSet(digits.pixels[order[:300]])
    results = {}
    for num in (20, len(digits) - 300):
        training = pd.ImageSet(digits.pixels[order[300 : 300 + num]])
        torch.manual_seed(0)
        denoiser = pd.Denoiser(pd.UNet(1, 16, (1, 2, 4), 1), training.standard_deviation)
        with tempfile.TemporaryDirectory() as folder:
            trainer = pd.Trainer(
                denoiser,
                training,
                pd.PatchSchedule(whole=0.5),
                out=Path(folder) / "run",
                batch=32,
                optimizer=Optimizer("adamw"),
                noise=Noise(weight="process"),
                samples=0,
                checkpoints=1,
                track=(),
                show=False,
            )
            model = trainer.fit(steps=arguments.steps)
            seen = pd.describe(Path(folder) / "run")["progress"]
        pairs = None if arguments.pairs is None else arguments.pairs / f"pairs-{num}.png"
        found = pd.evaluate(
            model,
            training,
            held_out=held_out,
            options=pd.EvaluationOptions(samples=arguments.samples, metrics=("memorization",), pairs=pairs),
        )
        flagged = [note for note in found.notes if note.startswith("the model copies")]
        results[str(num)] = {
            "training_images": num,
            "steps": seen["step"],
            "images_seen": seen["images"],
            "flagged": bool(flagged),
            "measures": {name: measure.as_dict() for name, measure in found.measures.items()},
        }
        rates = "  ".join(f"{name} {measure.value:.3f}" for name, measure in found.measures.items())
        print(
            f"{num:>6,} images, {seen['step']:,} steps: {rates}  {'FLAGGED' if flagged else 'not flagged'}", flush=True
        )
    if arguments.out:
        arguments.out.write_text(json.dumps({**circumstances(), "models": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
