"""Draws the figures of docs/method.md.

    python docs/site/figures.py [--picture 1f3de-fe0f.png] [--run examples/runs/tour]

The picture is the emoji "national park" of Noto Emoji (Apache-2.0), 64 x 64 pixels: img/google/64/1f3de-fe0f.png of
the package emoji-datasource-google 16.0.0. The run is that of examples/tour.ipynb. A figure whose picture or run is not
given stays as it is.
"""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import patch_diffusion as pd
from patch_diffusion.sampling.pictures import to_image

DOCS = Path(__file__).parents[1]
WIDTH = 480  # of a figure, in its own units: its letters of 14 can be read on a telephone, too
COLOURS = {"1/4": "#b3541e", "1/2": "#2a7f62", "whole": "#1e6bb3"}
NAMES = {"1/4": "quarters", "1/2": "halves", "whole": "whole images"}
LOW, MIDDLE, HIGH = (30, 80, 160), (250, 250, 250), (200, 60, 30)  # colours of coordinates -1, 0 and 1

# Where the crops of the first figure are cut: in [0, 1) of all places, y first.
PLACES = {"whole": (0.0, 0.0), "1/2": (0.15, 0.9), "1/4": (0.75, 0.3)}
STEPS = 60  # of the second figure
SEED = 2  # of the digit on its way, in the third figure; its class is the same number
SEEDS = range(20, 26)  # of the digits below it, of the classes 0 to 5


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--picture", type=Path, help="the emoji whose crops are shown")
    parser.add_argument("--run", type=Path, help="a run of the built-in digits")
    parser.add_argument("--out", type=Path, default=DOCS)
    arguments = parser.parse_args(words)
    write(arguments.out / "method-schedule.svg", schedule_figure())
    if arguments.picture is None:
        print("method-crops.svg stays as it is: give --picture, see --help for which")
    else:
        write(arguments.out / "method-crops.svg", crops_figure(open_picture(arguments.picture)))
    if arguments.run is None:
        print("method-sampling.svg stays as it is: give --run, such as that of examples/tour.ipynb")
    else:
        write(arguments.out / "method-sampling.svg", sampling_figure(pd.load(arguments.run)))


def write(path: Path, figure: str) -> None:
    path.write_text(figure, encoding="utf-8")
    print("drew", path)


# The crops.


def crops_figure(image: Tensor) -> str:
    """Draw an image (3, h, w) with its crops, and of each crop the pixels and the two channels of coordinates."""
    side, left, top, cell, gap, first = 190, 22, 62, 64, 8, 252
    height, width = image.shape[1:]
    sizes = {"whole": (height, width), **{name: (height // n, width // n) for name, n in divisors().items()}}
    drawn = [
        text(left, 26, "Image with two crops", weight="bold"),
        picture(left, top, side, to_image(image)),
        *ruler(left, top, side),
        *legend(left, top + side + 40),
        *(
            text(first + column * (cell + gap) + cell / 2, 26, label, anchor="middle", weight="bold")
            for column, label in enumerate(("pixels", "x", "y"))
        ),
    ]
    for row, (name, size) in enumerate(sizes.items()):
        crop = pd.random_patches(image[None], size, places=torch.tensor([PLACES[name]]))
        down, right = crop.corners[0].tolist()
        scale, y = side / width, 36 + row * (cell + 48)
        drawn.append(outline(left + right * scale, top + down * scale, size[1] * scale, size[0] * scale, COLOURS[name]))
        columns = [(f"{size[0]} x {size[1]}", to_image(crop.pixels[0]))]
        columns += [(f"{channel.min():.1f} to {channel.max():.1f}", coloured(channel)) for channel in crop.coords[0]]
        for column, (label, shown) in enumerate(columns):
            x = first + column * (cell + gap)
            drawn += [picture(x, y, cell, shown), outline(x, y, cell, cell, COLOURS[name])]
            drawn.append(text(x + cell / 2, y + cell + 17, label, 12.5, "middle"))
    return figure(drawn, 356)


def divisors() -> dict[str, int]:
    """Return the patch sizes of the default schedule, with the number of patches along a side of the image."""
    return {size: int(size.partition("/")[2]) for size in pd.PatchSchedule().sizes}


def outline(x: float, y: float, width: float, height: float, colour: str) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="none" stroke="{colour}" '
        'stroke-width="3.5"/>'
    )


def ruler(x: float, y: float, side: float) -> list[str]:
    """Write the coordinates at the corners of an image."""
    return [
        text(x, y - 8, "x = -1", 12.5),
        text(x + side, y - 8, "x = 1", 12.5, "end"),
        f'<g transform="translate({x - 7:g} {y:g}) rotate(-90)">{text(0, 0, "y = -1", 12.5, "end")}</g>',
        f'<g transform="translate({x - 7:g} {y + side:g}) rotate(-90)">{text(0, 0, "y = 1", 12.5)}</g>',
    ]


def legend(x: float, y: float) -> list[str]:
    """Draw the scale of the colours of coordinates."""
    ramp = coloured(pd.coordinate_grid(1, 64)[0])
    return [
        text(x, y - 8, "Colours of x and y"),
        f'<image x="{x:g}" y="{y}" width="190" height="14" preserveAspectRatio="none" href="{data(ramp)}"/>',
        text(x, y + 31, "-1", 12.5),
        text(x + 95, y + 31, "0", 12.5, "middle"),
        text(x + 190, y + 31, "1", 12.5, "end"),
    ]


def open_picture(path: Path) -> Tensor:
    """Read a picture as uint8 pixels (3, h, w), what is transparent on white."""
    with Image.open(path) as opened:
        drawn = opened.convert("RGBA")
    ground = Image.new("RGBA", drawn.size, "white")
    ground.alpha_composite(drawn)
    return torch.from_numpy(np.array(ground.convert("RGB"))).permute(2, 0, 1)


def coloured(coords: Tensor) -> Image.Image:
    """Draw a channel of coordinates (h, w), in the colours of -1, 0 and 1."""
    low, middle, high = (torch.tensor(colour, dtype=torch.float32) for colour in (LOW, MIDDLE, HIGH))
    share = coords[..., None].abs()
    colours = middle + share * (torch.where(coords[..., None] < 0, low, high) - middle)
    return to_image(colours.round().to(torch.uint8).movedim(-1, 0))


# The schedule.


def schedule_figure() -> str:
    """Draw the sizes over the steps of both kinds of schedule, and the shares of steps, images and work."""
    drawn: list[str] = []
    drawn_for_each, in_order = pd.PatchSchedule(kind="stochastic"), pd.PatchSchedule(kind="progressive")
    for schedule, y, words in (
        (drawn_for_each, 34, "a size is drawn for every step"),
        (in_order, 150, "from small to large"),
    ):
        name = f'<tspan font-weight="bold">{schedule.kind}</tspan>'
        drawn.append(f'<text x="16" y="{y - 8}" font-size="14">{name}: {words}</text>')
        for step in range(STEPS):
            side = schedule.size_at(step, (64, 64), step / STEPS).shape[0]
            drawn.append(
                f'<rect x="{16 + step * 448 / STEPS:g}" y="{y + 64 - side}" width="{448 / STEPS - 1.4:g}" '
                f'height="{side}" fill="{COLOURS[named(side, 64)]}"/>'
            )
        drawn.append(f'<path d="M16 {y + 64.5}H464" stroke="#888"/>')
    drawn += [text(16, 231, "first step", 12.5), text(464, 231, f"step {STEPS}, the last", 12.5, "end")]
    for row, (label, found) in enumerate(shares().items()):
        y, x = 262 + row * 54, 16.0
        drawn.append(text(16, y - 6, label, weight="bold"))
        for name, share in found.items():
            drawn.append(
                f'<rect x="{x:g}" y="{y}" width="{448 * share - 1.5:g}" height="24" fill="{COLOURS[name]}"/>'
                f'<text x="{x + 448 * share / 2:g}" y="{y + 17}" font-size="13" fill="white" '
                f'text-anchor="middle">{share:.0%}</text>'
            )
            x += 448 * share
    for column, (name, words) in enumerate(NAMES.items()):
        x = 16 + column * 150
        drawn.append(f'<rect x="{x}" y="420" width="14" height="14" fill="{COLOURS[name]}"/>')
        drawn.append(text(x + 20, 432, words))
    return figure(drawn, 450)


def shares() -> dict[str, dict[str, float]]:
    """Return the shares of each size in the steps, the images and the pixels, by the name of the size."""
    sizes = pd.PatchSchedule().sizes_for((64, 64))
    steps = {named(size.shape[0], 64): size.probability for size in sizes}
    images = {named(size.shape[0], 64): size.probability * size.growth for size in sizes}
    pixels = {named(s.shape[0], 64): s.probability * s.growth * s.shape[0] * s.shape[1] for s in sizes}
    kinds = {"share of the steps": steps, "share of the images": images, "share of the work (pixels)": pixels}
    return {
        label: {name: value / sum(found.values()) for name, value in found.items()} for label, found in kinds.items()
    }


def named(side: int, whole: int) -> str:
    """Return the name of a size, as in `NAMES`."""
    return {whole: "whole", whole // 2: "1/2", whole // 4: "1/4"}[side]


# Sampling.


def sampling_figure(model: pd.Denoiser) -> str:
    """Draw a digit on its way from noise, and digits that were made whole beside others made in quarters."""
    steps: list[Any] = []
    list(pd.generate(model, [SEED], steps=18, labels=SEED, callback=steps.append))
    height, width = model.resolution or (16, 16)
    shown, cell, gap = steps[::3][:6], 64, 12.8
    drawn = [
        text(16, 24, "One pass: in every step the network sees the whole image", weight="bold"),
        text(16, 44, "and the same whole coordinate grid"),
        *(
            picture(16 + column * 76.8, 54, cell, coloured(each))
            for column, each in enumerate(pd.coordinate_grid(height, width))
        ),
        text(180, 92, "x and y, the same in all steps", 13),
        text(16, 142, "the noisy image, and its noise level below", 13),
        text(16, 256, "what the network takes the clean image to be", 13),
    ]
    for column, step in enumerate(shown):
        x = 16 + column * (cell + gap)
        noisy = step.noisy[0].float() / (1 + step.sigma.float())  # scaled, or only noise would be seen
        drawn += [
            picture(x, 148, cell, visible(model, noisy)),
            text(x + cell / 2, 228, f"{step.sigma:.2g}", 12.5, "middle"),
            picture(x, 262, cell, visible(model, step.denoised[0].float())),
        ]
    together = [to_image(sample.visible) for sample in pd.generate(model, SEEDS, steps=18)]
    quarters = pd.Sampling(steps=18, tile=(height // 2, width // 2), overlap=0, coords="stretch")
    apart = [to_image(sample.visible) for sample in pd.generate(model, SEEDS, quarters)]
    for row, (label, found) in enumerate(
        (("Sampled in one pass", together), ("Sampled in four quarters, then stitched", apart))
    ):
        y = 370 + row * 98
        drawn.append(text(16, y - 8, label, weight="bold"))
        drawn += [picture(16 + column * (cell + gap), y, cell, each) for column, each in enumerate(found)]
    return figure(drawn, 546)


def visible(model: pd.Denoiser, image: Tensor) -> Image.Image:
    """Draw an image of model space."""
    return to_image(model.codec.decode(image))


# What all figures are made of.


def figure(parts: Sequence[str], height: int) -> str:
    """Put the parts of a figure on white."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH * 1.3:g}" '
            f'height="{height * 1.3:g}" font-family="sans-serif" font-size="14">'
            '<rect width="100%" height="100%" rx="6" fill="white"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def text(x: float, y: float, words: str, size: float = 14, anchor: str = "start", weight: str = "normal") -> str:
    anchored = "" if anchor == "start" else f' text-anchor="{anchor}"'
    bold = "" if weight == "normal" else f' font-weight="{weight}"'
    sized = "" if size == 14 else f' font-size="{size:g}"'
    return f'<text x="{x:g}" y="{y:g}"{sized}{anchored}{bold}>{escape(words)}</text>'


def picture(x: float, y: float, side: float, image: Image.Image) -> str:
    """Show a picture as a square whose pixels can be seen."""
    return (
        f'<image x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}" style="image-rendering:pixelated" '
        f'href="{data(image)}"/>'
    )


def data(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


if __name__ == "__main__":
    main()
