"""Does the denoising loss of whole images that were never trained on fall from checkpoint to checkpoint?

    python benchmarks/heldout_curve.py RUN DATA [--out FILE.json]

Whole images at fixed noise levels with fixed noise; the averaged weights of every checkpoint of a run.
"""

import argparse
import json
import platform
import subprocess
from pathlib import Path

import torch

import patch_diffusion as pd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path, help="images that the run was not trained on")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    found = pd.describe(arguments.run)
    options = found["options"]
    height, width = found["model"]["resolution"]
    images = pd.open_images(arguments.data, resolution=(height, width), classes=found["model"]["num_classes"] > 0)
    rows = []
    for step in found["checkpoints"]:
        losses = pd.whole_image_loss(pd.load(arguments.run, checkpoint=step), images)
        mean = sum(losses.values()) / len(losses)
        state = json.loads((arguments.run / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())
        rows.append({"mean": mean, "losses": losses, **state["seen"]})
        if len(rows) == 1:
            print("   step   images  minutes    mean | " + " ".join(f"{sigma:>7g}" for sigma in losses))
        print(
            f"{step:>7,} {state['seen']['images']:>8,} {state['seen']['seconds'] / 60:>8.1f} {mean:>7.4f} | "
            + " ".join(f"{loss:>7.4f}" for loss in losses.values())
        )
    if arguments.out:
        result = {
            "command": f"python benchmarks/heldout_curve.py RUN {arguments.data.name}",
            "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
            "hardware": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "held_out_images": len(images),
            "options": {**options, "data": {**options["data"], "source": Path(options["data"]["source"]).name}},
            "checkpoints": rows,
        }
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
