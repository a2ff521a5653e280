"""The losses of 20 training steps as hexadecimal floats, to show that a change of the code changes no number.

python benchmarks/golden_curve.py > before.txt    # at one commit
python benchmarks/golden_curve.py > after.txt     # at another, on the same machine
diff before.txt after.txt
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

import patch_diffusion as pd
from patch_diffusion.config import Noise, Optimizer


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = pd.open_images("digits")
    network = pd.UNet(images.channels, width=8, multipliers=(1, 2), blocks=1, num_classes=images.num_classes)
    schedule = pd.PatchSchedule(sizes={"1/2": 1.0})
    optimizer = Optimizer("adamw", learning_rate=1e-2, warmup=0.0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pd.Trainer(
            pd.Denoiser(network, 0.5),
            images,
            schedule,
            out=folder + "/run",
            batch=16,
            log_every=1,
            optimizer=optimizer,
            noise=Noise(weight="process"),
            samples=0,
            track=(),
            show=False,
        )
        trainer.fit(steps=20)
        for text in Path(folder, "run", "log.jsonl").read_text().splitlines():
            line = json.loads(text)
            for size, loss in line.get("loss", {}).items():
                print(line["step"], size, float(loss).hex())


if __name__ == "__main__":
    main()
