"""Do samples have the class, slant and thickness that they are asked for, alone, together, and in new combinations?

    python benchmarks/conditions.py --minutes 10

Draws digits of 28 x 28 pixels with a slant and a thickness, trains a model that is told all three, and measures its
samples by a small network that has learned to tell them on other drawings. R2 is that of asked against measured values,
beside the network's own on drawings that it has not seen. Digits of some classes are left out of the training where
they slant to the right, so that these combinations are new.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

import patch_diffusion as pd
from patch_diffusion.config import Config
from patch_diffusion.evaluation.circumstances import circumstances

OUT = Path(__file__).parent / "results" / "conditions-cpu.json"
SIDE, FINE = 28, 8
SLANTS, THICKNESSES = (-0.5, 0.5), (0.6, 2.4)
"""The ranges of slant, a shear to the right, and of thickness, in pixels added around a thin digit."""

LEFT_OUT = (2, 5, 7)
"""The classes that the training has with a slant below 0 only."""


def drawing(digit: int, slant: float, thickness: float) -> np.ndarray[Any, Any]:
    """Draw a digit in white on black, (28, 28)."""
    side = SIDE * FINE
    canvas = Image.new("L", (side, side))
    font = ImageFont.load_default(size=0.62 * side)
    where = {"anchor": "mm", "fill": 255, "stroke_width": round(thickness * FINE / 2)}
    ImageDraw.Draw(canvas).text((side / 2, side / 2), str(digit), font=font, **where)
    shear = (1, slant, -slant * side / 2, 0, 1, 0)
    moved = canvas.transform(canvas.size, Image.Transform.AFFINE, shear, Image.Resampling.BILINEAR)
    return np.asarray(moved.resize((SIDE, SIDE), Image.Resampling.BOX))


def drawings(num: int, seed: int, *, left_out: bool) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """Draw digits with random values; with ``left_out``, without the combinations that are to be new."""
    random = np.random.default_rng(seed)
    digits = random.integers(0, 10, num)
    slants, thicknesses = random.uniform(*SLANTS, num), random.uniform(*THICKNESSES, num)
    if left_out:
        slants = np.where(np.isin(digits, LEFT_OUT), -np.abs(slants), slants)
    triples = zip(digits.tolist(), slants.tolist(), thicknesses.tolist(), strict=True)
    pixels = np.stack([drawing(*each) for each in triples])
    return pixels, {"digit": digits, "slant": slants, "thickness": thicknesses}


class Measure(nn.Module):
    """A network that tells the class, slant and thickness of a drawing."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 16, 128), nn.ReLU()),
            nn.Linear(128, 12),
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores of classes (n, 10), and slant and thickness (n, 2), of pixels (n, 28, 28)."""
        found = self.layers(pixels[:, None].float() / 127.5 - 1)
        return found[:, :10], found[:, 10:]


def learned(pixels: np.ndarray[Any, Any], values: dict[str, Any]) -> Measure:
    """Train the measure on drawings, with a little noise, so that grain of samples does not confuse it."""
    torch.manual_seed(0)
    made = Measure()
    optimizer = torch.optim.Adam(made.parameters(), 1e-3)
    images, digits = torch.from_numpy(pixels), torch.from_numpy(values["digit"])
    numbers = torch.tensor(np.stack([values["slant"], values["thickness"]], axis=1), dtype=torch.float32)
    for step in range(3000):
        rows = torch.randint(len(images), (64,))
        noisy = images[rows].float() + 12 * torch.randn(64, SIDE, SIDE)
        scores, found = made(noisy.clamp(0, 255))
        loss = F.cross_entropy(scores, digits[rows]) + F.mse_loss(found, numbers[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - step / 3000)
    return made.eval()


def r2(asked: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    """Return the share of the variance of what was asked that is found."""
    return float(1 - np.square(asked - found).mean() / asked.var())


@torch.no_grad()
def figures(measure: Measure, pixels: np.ndarray[Any, Any], values: dict[str, Any]) -> dict[str, float]:
    """Return the share of classes that are recognised, and R2 of slant and thickness."""
    scores, numbers = measure(torch.from_numpy(pixels))
    found = numbers.numpy()
    return {
        "recognised": float((scores.argmax(dim=1).numpy() == values["digit"]).mean()),
        "slant": r2(values["slant"], found[:, 0]),
        "thickness": r2(values["thickness"], found[:, 1]),
    }


def sampled(model: pd.Denoiser, values: dict[str, Any], first: int, guidance: float) -> np.ndarray[Any, Any]:
    """Return samples (n, 28, 28) that were asked for by these values."""
    num = len(values["digit"])
    conditions = {"slant": values["slant"].tolist(), "thickness": values["thickness"].tolist()}
    told: dict[str, Any] = {"labels": values["digit"].tolist(), "conditions": conditions}
    samples = pd.generate(model, range(first, first + num), pd.Sampling(guidance=guidance), **told)
    return np.stack([sample.pixels[0].numpy() for sample in samples])


def wanted(num: int, seed: int, *, new: bool) -> dict[str, Any]:
    """Return random values to ask for: of the new combinations only, or of those of the training."""
    random = np.random.default_rng(seed)
    digits = random.choice(LEFT_OUT, num) if new else random.integers(0, 10, num)
    slants = random.uniform(*SLANTS, num)
    slants = np.abs(slants) if new else np.where(np.isin(digits, LEFT_OUT), -np.abs(slants), slants)
    return {"digit": digits, "slant": slants, "thickness": random.uniform(*THICKNESSES, num)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--run", type=Path, default=Path("runs/conditions"))
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    measure = learned(*drawings(8000, 1, left_out=False))
    real = figures(measure, *drawings(1000, 2, left_out=False))
    pixels, values = drawings(arguments.images, 3, left_out=True)
    conditions = {name: values[name] for name in ("slant", "thickness")}
    images = pd.open_images(pixels[:, None], conditions=conditions)
    images = pd.ImageSet(images.pixels, torch.from_numpy(values["digit"]), attributes=images.attributes)
    torch.manual_seed(0)
    network = pd.UNet(1, 16, (1, 2, 4), 1, (2,), 0.0, num_classes=10, attribute_channels=4)
    denoiser = pd.Denoiser(network, images.standard_deviation)
    config = Config(batch=32, samples=0, checkpoints=1)
    model = pd.Trainer(denoiser, images, config, out=arguments.run).fit(minutes=arguments.minutes)
    result: dict[str, Any] = {
        "command": f"python benchmarks/conditions.py --minutes {arguments.minutes:g} --guidance {arguments.guidance:g}",
        **circumstances(torch.device("cpu")),
        "drawings that were not seen": real,
    }
    for name, new, first in (("samples", False, 0), ("samples of new combinations", True, 10_000)):
        asked = wanted(arguments.samples, 4 + new, new=new)
        made = sampled(model, asked, first, arguments.guidance)
        result[name] = figures(measure, made, asked)
        Image.fromarray(np.hstack(list(made[:16]))).resize((16 * SIDE * 3, SIDE * 3)).save(arguments.run / f"{new}.png")
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if isinstance(value, dict)}, indent=1))


if __name__ == "__main__":
    main()
