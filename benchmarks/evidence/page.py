"""The tables and the picture of docs/evidence.md, from the result files.

    python benchmarks/evidence/page.py

Tables stand between two comments that name the result file; what is there is replaced. Of several seeds a table has the
mean and, beside it, the lowest and the highest.
"""

import json
import math
import re
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE, PICTURE = ROOT / "docs" / "evidence.md", ROOT / "docs" / "evidence.svg"
NOISE_PICTURE = ROOT / "docs" / "evidence-noise.svg"
QUESTIONS = {
    "whole_share": "Share p of steps on whole images",
    "coordinates": "Coordinates are given",
    "kinds": "Sizes of the steps",
    "small_data": "Images to train on",
    "weights": "Weight of a patch",
}
LEVELS = ("0.1", "3.2")  # of noise, in the tables beside the mean of all
NOT_RUN = "*Not run yet.*"
SHADES = ("#e6850e", "#d9480f", "#b3541e", "#7f2704", "#9ecae1", "#1e6bb3")
OWN, OTHER = "#1e6bb3", "#b3541e"
ROW, TITLE, TOP = 19, 30, 58
PANELS = (
    ("loss", "Loss of whole held-out images", "less is better; lines: 95 % of the difference from blue", 190, 330),
    ("frechet", "Frechet distance of samples", "less is better; lines: intervals of 95 %", 570, 330),
)


def results(kind: str = "cpu") -> dict[str, dict[str, Any]]:
    """Those that are there, by the name of their script."""
    files = {name: RESULTS / f"evidence-{name}-{kind}.json" for name in QUESTIONS}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.exists()}


def table(result: dict[str, Any]) -> str:
    """Markdown: a row for each arm."""
    copies = any(row["images"] and "near_copies" in row["seeds"][0] for row in result["arms"])
    bases = {row["against"] for row in result["arms"]} - {None}
    compared = f'against "{bases.pop()}"' if len(bases) == 1 else "against the row above"
    head = ["arm", "seeds", "held-out loss", compared, *(f"at noise {level}" for level in LEVELS)]
    head += ["Frechet", "kernel", "images seen", "epochs"] + ["near copies, held-out images'"] * copies
    rows: list[list[str]] = []
    for row in result["arms"]:
        seeds = row["seeds"]
        cells = [row["name"], f"{len(seeds)}", of_seeds([each["loss"]["value"] for each in seeds], "{:.4f}")]
        cells += [against(row, result)]
        cells += [f"{by_noise(row)[level]:.4f}" for level in LEVELS]
        cells += [with_interval(seeds, "frechet", "{:,.0f}"), with_interval(seeds, "kernel", "{:.3f}")]
        cells += [f"{seeds[0]['cost']['images']:,}", f"{seeds[0]['epochs']:.0f}"]
        if copies:
            shares = [seeds[0][name]["value"] for name in ("near_copies", "near_copies_held_out")]
            cells += [" and ".join(f"{100 * share:.1f} %" for share in shares)]
        rows.append(cells)
    shown = [place for place in range(len(head)) if any(cells[place] for cells in rows)]
    lines = [[cells[place] for place in shown] for cells in ([head, *rows])]
    lines.insert(1, ["---", *["---:"] * (len(shown) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def of_seeds(values: Sequence[float], form: str) -> str:
    """The mean, and the lowest and highest of several."""
    mean = form.format(sum(values) / len(values))
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))} to {form.format(max(values))})"


def with_interval(seeds: Sequence[dict[str, Any]], name: str, form: str) -> str:
    """Of one seed with its interval, of several as `of_seeds`."""
    if name not in seeds[0]:
        return ""
    if len(seeds) > 1:
        return of_seeds([each[name]["value"] for each in seeds], form)
    found = seeds[0][name]
    interval = (
        "" if found["interval"] is None else " ({} to {})".format(*(form.format(end) for end in found["interval"]))
    )
    return form.format(found["value"]) + interval


def against(row: dict[str, Any], result: dict[str, Any]) -> str:
    """How much higher the loss is than another arm's, in percent: of one seed with its interval over images."""
    base = next((other for other in result["arms"] if other["name"] == row["against"]), None)
    if base is None:
        return ""
    shares = []
    for each in row["seeds"]:
        loss = next((other["loss"]["value"] for other in base["seeds"] if other["seed"] == each["seed"]), None)
        if loss is not None and "difference" in each:
            found = each["difference"]
            shares.append([100 * value / loss for value in (found["value"], *found["interval"])])
    if len(shares) > 1:
        return of_seeds([share[0] for share in shares], "{:+.1f} %")
    return "{:+.1f} % ({:+.1f} to {:+.1f})".format(*shares[0])


def picture(found: dict[str, dict[str, Any]]) -> str:
    """An SVG of two panels with a row for each arm; a line marks the arm that others are compared with."""
    rows = sum(len(result["arms"]) for result in found.values())
    bottom = TOP + ROW * rows + TITLE * len(found)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 920 {bottom + 44}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for name, title, about, left, width in PANELS:
        every = [each for result in found.values() for row in result["arms"] for each in row["seeds"] if name in each]
        if not every:
            continue
        axis = Axis([end for each in every for end in (each[name]["value"], *ends(each, name))], left, width)
        parts.append(f'<text x="{left}" y="22" font-weight="bold">{title}</text>')
        parts.append(f'<text x="{left}" y="38" fill="#666">{about}</text>')
        for tick in axis.ticks():
            x = axis.place(tick)
            parts.append(f'<path d="M{x:.1f} {TOP - 8}V{bottom}" stroke="#e4e4e4"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle" fill="#666">{tick:,g}</text>')
        y = float(TOP)
        for question, result in found.items():
            if name == "loss":
                parts.append(f'<text x="12" y="{y + 16:.0f}" font-weight="bold">{escape(QUESTIONS[question])}</text>')
            y += TITLE
            parts += group(result["arms"], name, axis, y)
            y += ROW * len(result["arms"])
    return "\n".join([*parts, "</svg>", ""])


def noise_picture(result: dict[str, Any]) -> str:
    """An SVG: the loss at each noise level, in percent above that of the arm that others are compared with."""
    arms = {row["name"]: row for row in result["arms"]}
    base = next((row["against"] for row in result["arms"] if row["against"] in arms), result["arms"][-1]["name"])
    own = by_noise(arms[base])
    curves = {
        name: [100 * (loss / other - 1) for loss, other in zip(by_noise(row).values(), own.values(), strict=True)]
        for name, row in arms.items()
        if name != base
    }
    reach = 1.1 * max(abs(value) for values in curves.values() for value in values)
    left, top, width, height = 60, 56, 520, 260
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 50, 100, 1000) if reach / step < 5)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 740 {top + height + 56}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{left}" y="22" font-weight="bold">Loss of whole held-out images, % above "{escape(base)}"</text>',
        f'<text x="{left}" y="38" fill="#666">less is better</text>',
        f'<text x="{left + width / 2}" y="{top + height + 44}" text-anchor="middle">noise level: from texture alone '
        "missing to all but the layout</text>",
    ]

    def up(value: float) -> float:
        return top + height * (1 - value / reach) / 2

    for number in range(-math.floor(reach / step), math.floor(reach / step) + 1):
        y, colour = up(step * number), "#e4e4e4" if number else OWN
        told = f"{step * number:+g}" if number else "0"
        parts.append(f'<path d="M{left} {y:.1f}h{width}" stroke="{colour}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#666">{told}</text>')
    across = [left + width * place / (len(own) - 1) for place in range(len(own))]
    for x, level in zip(across, own, strict=True):
        parts.append(f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle" fill="#666">{level}</text>')
    named = spread([up(values[-1]) for values in curves.values()], 14)
    for (name, values), colour, y in zip(curves.items(), SHADES, named, strict=False):
        points = " ".join(f"{x:.1f},{up(value):.1f}" for x, value in zip(across, values, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{across[-1] + 8:.1f}" y="{y + 4:.1f}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def spread(heights: Sequence[float], apart: float) -> list[float]:
    """These heights, moved down where one would lie on another."""
    moved = list(heights)
    order = sorted(range(len(moved)), key=moved.__getitem__)
    for above, below in pairwise(order):
        moved[below] = max(moved[below], moved[above] + apart)
    return moved


def by_noise(row: dict[str, Any]) -> dict[str, float]:
    """The loss at each noise level, the mean over the seeds."""
    seeds = [each["loss_by_noise"] for each in row["seeds"]]
    return {level: sum(each[level] for each in seeds) / len(seeds) for level in seeds[0]}


def group(arms: Sequence[dict[str, Any]], name: str, axis: "Axis", y: float) -> list[str]:
    """The arms of one question."""
    parts = []
    bases = {row["against"] for row in arms}
    places = {row["name"]: y + ROW * place for place, row in enumerate(arms)}
    for row in arms:
        here, colour = places[row["name"]], OWN if row["name"] in bases else OTHER
        if name == "loss":
            parts.append(f'<text x="180" y="{here + 4:.0f}" text-anchor="end">{escape(row["name"])}</text>')
        if row["name"] in bases and name in row["seeds"][0]:
            compared = [places[other["name"]] for other in arms if other["against"] == row["name"]]
            x = axis.place(row["seeds"][0][name]["value"])
            line = f"M{x:.1f} {min(here, *compared) - 6:.0f}V{max(here, *compared) + 6:.0f}"
            parts.append(f'<path d="{line}" stroke="{OWN}" stroke-dasharray="2 3"/>')
        for order, each in enumerate(each for each in row["seeds"] if name in each):
            at = here + (order - (len(row["seeds"]) - 1) / 2) * 5
            line = [axis.place(end) for end in ends(each, name)]
            if line:
                parts.append(f'<path d="M{line[0]:.1f} {at:.1f}H{line[1]:.1f}" stroke="{colour}" stroke-width="1.5"/>')
            x = axis.place(each[name]["value"])
            parts.append(f'<circle cx="{x:.1f}" cy="{at:.1f}" r="3.5" fill="{colour}"/>')
    return parts


def ends(each: dict[str, Any], name: str) -> tuple[float, ...]:
    """Of an interval: of the distance, or of the loss' difference from another arm's, at the loss itself."""
    if name != "loss":
        return tuple(each[name]["interval"] or ())
    if "difference" not in each:
        return ()
    return tuple(each["loss"]["value"] + end - each["difference"]["value"] for end in each["difference"]["interval"])


class Axis:
    """Of values above 0, logarithmic, from ``left`` on."""

    def __init__(self, values: Sequence[float], left: float, width: float) -> None:
        low, high = min(values), max(values)
        margin = max((high / low) ** 0.03, (1.1 * low / high) ** 0.5)
        self.low, self.high, self.left, self.width = low / margin, high * margin, left, width

    def place(self, value: float) -> float:
        """Where it lies."""
        return self.left + self.width * math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[float]:
        """Round numbers, about five."""
        steps = [factor * 10.0**power for power in range(-3, 6) for factor in (1, 2, 5)]
        for step in steps:
            first, last = math.ceil(self.low / step), math.floor(self.high / step)
            if last - first < 6:
                return [round(step * number, 6) for number in range(first, last + 1)]
        return [self.low, self.high]


def main() -> None:
    found = results()
    text = PAGE.read_text(encoding="utf-8")
    for name in QUESTIONS:
        shown = table(found[name]) if name in found else NOT_RUN
        if name == "whole_share" and name in found:
            NOISE_PICTURE.write_text(noise_picture(found[name]), encoding="utf-8")
        block = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        text = block.sub(lambda match, shown=shown: match[1] + shown + match[2], text)
    PAGE.write_text(text, encoding="utf-8")
    if len(found) > 1:
        PICTURE.write_text(picture(found), encoding="utf-8")


if __name__ == "__main__":
    main()
