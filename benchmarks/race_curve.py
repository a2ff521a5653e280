"""Does the lead of patches grow or shrink with the budget? The same race at a ninth, a third and all of the minutes.

    python benchmarks/race_curve.py --data CATS.zip --minutes 60 --runs races/curve --out curve.json
        [--resolution 128] [--seeds 0-2] [--held-out OTHERS.zip] [--tune-share 0.5] [OPTIONS OF RACE ...]

All arms are tuned by the same search, in the given share of the minutes of each budget, and judged by images that the
search did not see. Further options, such as `--moments 10` or `--watch.samples 200`, go to the command `race`.

It writes one JSON file, and one picture beside it (.svg): how many times as fast patches reach the final loss of whole
images, and the distances of samples at the end, each with the range over the seeds. It may be stopped at any time: the
same command continues the race that it was at, and does not run again those that are finished. More seeds may be given
later.
"""

import argparse
import json
import subprocess
import sys
from html import escape
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

from measuring import circumstances
from race_picture import COLOURS, NAMES, apart

from patch_diffusion.cli.parsing import parse_seeds
from patch_diffusion.races.arms import PATCHES, WHOLE
from patch_diffusion.runs.chart import even
from patch_diffusion.runs.history import DISTANCES

PARTS = (9, 3, 1)
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BELOW = 300, 260, 64, 58, 100, 52


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False)
    parser.add_argument("--data", required=True)
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--held-out", help="images to judge by, in place of a share of the data")
    parser.add_argument("--minutes", type=float, default=60, help="training of each arm in the longest race")
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--tune-share", type=float, default=0.5, help="the search of an arm, as a share of its minutes")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the races")
    parser.add_argument("--out", type=Path, required=True)
    arguments, further = parser.parse_known_args()
    options = options_of(arguments, further)
    refuse_others(arguments.runs / "options.json", options)
    rows: list[dict[str, Any]] = []
    for part in PARTS:
        minutes = arguments.minutes / part
        content = raced(arguments, minutes, options)
        rows.append(row(content, minutes))
        print(in_words(rows[-1]), flush=True)
        settings = {"data": Path(arguments.data).name, "minutes": arguments.minutes, "seeds": arguments.seeds}
        found = {**circumstances(), "settings": {**settings, "options": options}, "budgets": rows}
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        arguments.out.with_suffix(".svg").write_text(picture(rows, Path(arguments.data).stem), encoding="utf-8")


def options_of(arguments: argparse.Namespace, further: list[str]) -> list[str]:
    """The options of all races, but for their minutes and seeds."""
    options = [arguments.data, "--tune-all"]
    options += [] if arguments.resolution is None else ["--resolution", str(arguments.resolution)]
    options += [] if arguments.held_out is None else ["--held-out", arguments.held_out]
    asked = any(word.startswith("--watch.metrics") for word in further)
    return [*options, *([] if asked else ["--watch.metrics", *DISTANCES]), *further]


def refuse_others(file: Path, options: list[str]) -> None:
    """Keep the options in a file, or stop if other ones are in it."""
    if file.exists() and (before := json.loads(file.read_text(encoding="utf-8"))) != options:
        sys.exit(f"{file.parent} holds races with other options ({' '.join(before)}): give another --runs")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(options) + "\n", encoding="utf-8")


def raced(arguments: argparse.Namespace, minutes: float, options: list[str]) -> dict[str, Any]:
    """The results of the race of so many minutes, which is run, or continued, if it is not finished."""
    folder, seeds = arguments.runs / f"minutes-{minutes:.6g}", parse_seeds(arguments.seeds)
    file = folder / "race.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    if content is not None and set(seeds) <= set(content["standings"]["seeds"]):
        return content
    budget = ["--minutes", f"{minutes:.6g}", "--tune", f"{arguments.tune_share * minutes:.6g}"]
    command = [sys.executable, "-m", "patch_diffusion", "race", *options, *budget]
    status = subprocess.run([*command, "--seeds", arguments.seeds, "--out", str(folder)]).returncode
    if status:
        sys.exit(status)
    return json.loads(file.read_text(encoding="utf-8"))


def row(content: dict[str, Any], minutes: float) -> dict[str, Any]:
    """What is kept of a race."""
    standings = content["standings"]
    reached = {seed: each["ratio"] for seed, each in standings["reaches"][PATCHES][WHOLE]["by_seed"].items()}
    return {
        "minutes": minutes,
        "seeds": standings["seeds"],
        "ratio": ranged(reached, geometric_mean),
        "loss": {arm: ranged(each["by_seed"]) for arm, each in standings["final"].items()},
        "distances": {
            measure: {arm: ranged(each["by_seed"]) for arm, each in found["final"].items()}
            for measure, found in content["distances"].items()
        },
        "steps": {
            arm: {seed: found[-1]["step"] for seed, found in each.items()} for arm, each in content["points"].items()
        },
        "tuning": {
            arm: {key: found[key] for key in ("options", "left_out")} for arm, found in content["tuning"].items()
        },
        "trials": {arm: len(found["trials"]) for arm, found in content["tuning"].items()},
        "judged_by": content["judged_by"],
        "parameters": content["parameters"],
    }


def ranged(by_seed: dict[str, float | None], mean: Any = fmean) -> dict[str, Any]:
    """The mean, the least and the most over the seeds, None if a seed has no value."""
    values = [value for value in by_seed.values() if value is not None]
    every = bool(values) and len(values) == len(by_seed)
    found = {"mean": mean(values), "least": min(values), "most": max(values)} if every else {}
    return {"mean": None, "least": None, "most": None, **found, "by_seed": by_seed}


def in_words(found: dict[str, Any]) -> str:
    ratio, losses = found["ratio"], {arm: each["mean"] for arm, each in found["loss"].items()}
    times = [value for value in ratio["by_seed"].values() if value is not None]
    if ratio["mean"] is not None:
        said = f"patches {ratio['mean']:.2f} times as fast ({ratio['least']:.2f} to {ratio['most']:.2f})"
    else:
        said = f"patches reach the loss of whole images with {len(times)} of {len(ratio['by_seed'])} seeds"
    ends = ", ".join(f"{arm} {loss:.4f}" for arm, loss in losses.items())
    return f"{found['minutes']:.3g} min: {said}; final loss {ends}"


def picture(rows: list[dict[str, Any]], title: str) -> str:
    """An SVG with a panel of the ratio, and one of each distance."""
    panels = [("Times as fast to the loss of whole images", {"ratio": [row["ratio"] for row in rows]})]
    for measure in rows[0]["distances"]:
        curves = {arm: [row["distances"][measure][arm] for row in rows] for arm in rows[0]["distances"][measure]}
        panels.append((f"{DISTANCES[measure].capitalize()} of samples", curves))
    each = LEFT + WIDTH + RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {each * len(panels)} {TOP + HEIGHT + BELOW}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    minutes = [row["minutes"] for row in rows]
    seeds = len(rows[0]["seeds"])
    for number, (name, curves) in enumerate(panels):
        about = f"{title}; {'means of ' * (seeds > 1)}{seeds} seed{'s and their range' * (seeds > 1)}"
        parts += [f'<g transform="translate({number * each} 0)">', *panel(name, about, curves, minutes), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def panel(name: str, about: str, curves: dict[str, list[dict[str, Any]]], minutes: list[float]) -> list[str]:
    """One measure over the minutes, whose axis is logarithmic; a budget without a value has no point."""
    points = {
        arm: [(time, each) for time, each in zip(minutes, found, strict=True) if each["mean"] is not None]
        for arm, found in curves.items()
    }
    every = [each[key] for found in points.values() for _, each in found for key in ("least", "most")] or [0.0]
    every += [1.0] if "ratio" in curves else []
    low, high = min(every), max(every)
    low, high = low - (high - low or 1) / 10, high + (high - low or 1) / 10
    across = [
        LEFT + WIDTH * (0.5 if len(minutes) == 1 else place / (len(minutes) - 1)) for place in range(len(minutes))
    ]
    places = dict(zip(minutes, across, strict=True))

    def up(value: float) -> float:
        return TOP + HEIGHT * (high - value) / (high - low)

    parts = [
        f'<text x="{LEFT}" y="22" font-weight="bold">{escape(name)}</text>',
        f'<text x="{LEFT}" y="38" fill="#666">{escape(about)}</text>',
        f'<text x="{LEFT + WIDTH / 2:g}" y="{TOP + HEIGHT + 42}" text-anchor="middle">'
        "minutes of training, of each</text>",
    ]
    for tick in even(low, high):
        parts.append(f'<path d="M{LEFT} {up(tick):.1f}h{WIDTH}" stroke="{"#888" if tick == 1 else "#e4e4e4"}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{up(tick) + 4:.1f}" text-anchor="end" fill="#666">{tick:g}</text>')
    parts += [
        f'<text x="{x:.1f}" y="{TOP + HEIGHT + 20}" text-anchor="middle" fill="#666">{time:.3g}</text>'
        for time, x in places.items()
    ]
    missed = [time for time in minutes if not any(time == at for found in points.values() for at, _ in found)]
    parts += [
        f'<text x="{places[time]:.1f}" y="{TOP + HEIGHT - 8}" text-anchor="middle" fill="#666">not reached</text>'
        for time in missed
    ]
    ends = apart({arm: up(found[-1][1]["mean"]) for arm, found in points.items() if found})
    for (arm, found), colour in zip(points.items(), COLOURS, strict=False):
        line = " ".join(f"{places[time]:.1f},{up(each['mean']):.1f}" for time, each in found)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for time, each in found:
            x, least, most = places[time], up(each["least"]), up(each["most"])
            parts.append(
                f'<path d="M{x:.1f} {least:.1f}V{most:.1f}" stroke="{colour}" stroke-width="1.5" opacity=".5"/>'
            )
            parts.append(f'<circle cx="{x:.1f}" cy="{up(each["mean"]):.1f}" r="4" fill="{colour}"/>')
        if arm in ends:
            told = f"{found[-1][1]['mean']:.2f} times" if arm == "ratio" else NAMES.get(arm) or arm
            x = places[found[-1][0]] + 8
            parts.append(f'<text x="{x:.1f}" y="{ends[arm] + 4:.1f}" fill="{colour}">{escape(told)}</text>')
    return parts


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on")
