"""The picture of some races, side by side, such as the README's.

    python benchmarks/race_picture.py docs/race.svg --race benchmarks/results/race-cat-faces-32-cpu.json "Cat faces"
        [--race FILE.json TITLE ...] [--from-spent 0.1]

The loss of held-out images of each arm, the mean over the seeds and their range, and from where an arm has the final
loss of whole images to where these have it.
"""

import argparse
import json
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from patch_diffusion.races.summary import opponent
from patch_diffusion.runs.chart import even

LEFT, TOP, RIGHT, HEIGHT, BELOW = 64, 58, 100, 300, 52
WIDTH = 600  # of all panels together
COLOURS = ("#b3541e", "#1e6bb3", "#4d8a3d", "#7a4fa3")
NAMES = {"whole": "whole images", "patches": "patches"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--race", nargs=2, action="append", required=True, metavar=("FILE", "TITLE"))
    parser.add_argument("--from-spent", type=float, default=0.1, help="leave out what is before this share of the time")
    arguments = parser.parse_args()
    races = [(json.loads(Path(file).read_text(encoding="utf-8")), title) for file, title in arguments.race]
    arguments.picture.write_text(picture(races, arguments.from_spent), encoding="utf-8")


def picture(races: list[tuple[dict[str, Any], str]], since: float) -> str:
    """An SVG."""
    width = WIDTH / len(races)
    each = LEFT + width + RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {each * len(races):g} {TOP + HEIGHT + BELOW}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for number, (content, title) in enumerate(races):
        parts += [f'<g transform="translate({number * each:g} 0)">', *panel(content, title, since, width), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def panel(content: dict[str, Any], title: str, since: float, width: float) -> list[str]:
    """One race, with its axes as wide as this."""
    curves = {name: curve(content, name, since) for name in content["plan"]["arms"]}
    every = [value for points in curves.values() for _, *values in points for value in values]
    low, high = min(every), max(every)
    low, high = low - (high - low) / 12, high + (high - low) / 12
    first, last = since * content["budget"], content["budget"]

    def across(time: float) -> float:
        return LEFT + width * (time - first) / (last - first)

    def up(loss: float) -> float:
        return TOP + HEIGHT * (high - loss) / (high - low)

    seeds = len(content["standings"]["seeds"])
    about = "less is better" + (f"; means of {seeds} seeds and their range" if seeds > 1 else "; one seed")
    parts = [
        f'<text x="{LEFT}" y="22" font-weight="bold">{escape(title)}</text>',
        f'<text x="{LEFT}" y="38" fill="#666">{about}</text>',
        f'<text x="{LEFT + width / 2:g}" y="{TOP + HEIGHT + 42}" text-anchor="middle">'
        f"{content['unit']} of training, of each</text>",
    ]
    for tick in even(low, high):
        parts.append(f'<path d="M{LEFT} {up(tick):.1f}h{width:g}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{up(tick) + 4:.1f}" text-anchor="end" fill="#666">{tick:g}</text>')
    parts += [
        f'<text x="{across(tick):.1f}" y="{TOP + HEIGHT + 20}" text-anchor="middle" fill="#666">{tick:g}</text>'
        for tick in even(first, last, 8 if width > WIDTH / 2 else 5)
    ]
    named = apart({name: up(points[-1][1]) for name, points in curves.items()})
    for (name, points), colour in zip(curves.items(), COLOURS, strict=False):
        band = [(time, least) for time, _, least, _ in points] + [(time, most) for time, *_, most in points][::-1]
        outline = " ".join(f"{across(time):.1f},{up(loss):.1f}" for time, loss in band)
        line = " ".join(f"{across(time):.1f},{up(loss):.1f}" for time, loss, *_ in points)
        parts.append(f'<polygon points="{outline}" fill="{colour}" opacity=".18"/>')
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        told = escape(NAMES.get(name) or name)
        parts.append(f'<text x="{LEFT + width + 8:g}" y="{named[name] + 4:.1f}" fill="{colour}">{told}</text>')
    return [*parts, *guide(content, across, up)]


def apart(heights: dict[str, float], least: float = 14.0) -> dict[str, float]:
    """These heights, from the top, moved down where one word would lie on another."""
    moved: dict[str, float] = {}
    for name, height in sorted(heights.items(), key=lambda each: each[1]):
        moved[name] = max(height, max(moved.values(), default=-least) + least)
    return moved


def guide(content: dict[str, Any], across: Any, up: Any) -> list[str]:
    """From where the first arm beside whole images has their final loss."""
    found, other = content["standings"], opponent(content)
    name = next(name for name in content["plan"]["arms"] if name != other)
    reached, loss = found["reaches"][name][other], found["final"][other]["loss"]
    if reached["at"] is None:
        return []
    x, y, end = across(reached["at"]), up(loss), across(content["budget"])
    return [
        f'<path d="M{x:.1f} {y:.1f}H{end:.1f}" stroke="#444" stroke-dasharray="5 4"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#444"/>',
        *(
            f'<text x="{x - 8:.1f}" y="{y + lower:.1f}" text-anchor="end" font-weight="bold">{text}</text>'
            for lower, text in ((18, f"{reached['ratio']:.2f} times"), (32, "as fast"))
        ),
    ]


def curve(content: dict[str, Any], name: str, since: float) -> list[tuple[float, float, float, float]]:
    """At each moment that all seeds have come to: the time, the mean loss, the least and the most."""
    by_seed = [content["points"][name][str(seed)] for seed in content["standings"]["seeds"]]
    own = content["plan"]["arms"][name][content["unit"]]
    points = []
    for measured in zip(*by_seed, strict=False):
        losses = [each["loss"] for each in measured]
        spent = fmean(each["spent"] for each in measured)
        if spent * own >= since * content["budget"]:
            points.append((spent * own, fmean(losses), min(losses), max(losses)))
    return points


if __name__ == "__main__":
    main()
