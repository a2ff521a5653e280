"""Run folders with logs, pictures and evaluations as training leaves them, made without training."""

import json
import math

import numpy as np
from PIL import Image

from patch_diffusion.config_dict import from_dict
from patch_diffusion.runs.folder import ModelFacts, RunFolder


def make_run(path, *, steps=200, end=1.0, speed=1.0, loss=0.3, sizes=("16x16", "8x8"), held_out=True, options=None,
             facts=None, metrics=None, samples=4):  # fmt: skip
    """A run that has come to ``end`` of its budget, with losses that fall to ``loss``."""
    folder = RunFolder(path)
    known = {"image_channels": 1, "resolution": (16, 16), "num_classes": 0, "class_names": (), "num_images": 1000,
             "sigma_data": 0.5, "parameters": 123_456}  # fmt: skip
    config = from_dict({"steps": steps, "data": {"source": "digits"}, **(options or {})})
    folder.write_config(config, ModelFacts(**{**known, **(facts or {})}))
    lines = []
    for step in range(10, round(end * steps) + 1, 10):
        now = loss + math.exp(-step / 40)
        seen = {"step": step, "images": 32 * step, "seconds": step / speed, "spent": step / steps}
        counts = {"patches": 16 * step, "pixels": 5000 * step, "flops": 10**9 * step, "learning_rate": 1e-3}
        by_noise = {"0.1": 2 * now, "0.5": now, "2": now / 2}
        lines.append({**seen, **counts, "loss": {size: now * (1 + place / 9) for place, size in enumerate(sizes)},
                      "loss_by_noise": by_noise, "skipped": 0})  # fmt: skip
        if held_out and step % 50 == 0:
            lines.append({**seen, "held_out": {"loss": now + 0.02, "by_noise": {"0.1": now, "2": now / 3}}})
    folder.log_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    random = np.random.default_rng(len(str(path)))
    for place in range(1, samples + 1):
        file = folder.sample_file(round(end * steps * place / samples))
        file.parent.mkdir(exist_ok=True)
        array = (random.random((67, 67)) * 255 * place / samples).astype(np.uint8)
        Image.fromarray(array).resize((536, 536), Image.Resampling.NEAREST).save(file)
    if metrics is not None:
        found = {name: {"value": value, "interval": [0.9 * value, 1.1 * value], "settings": {"samples": num}}
                 for name, (value, num) in metrics.items()}  # fmt: skip
        content = {"source": str(path), "metrics": found, "settings": {"seed": 0}, "notes": []}
        (folder.path / "evaluation.json").write_text(json.dumps(content))
    return folder.path
