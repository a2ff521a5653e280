"""``race.html``: the results of a race of trainings on one page, which needs no network and no other files."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from patch_diffusion.config_dict import differences, from_dict
from patch_diffusion.errors import counted
from patch_diffusion.races.summary import Content, amount, judges_in_words, length, opponent, rows, sentences
from patch_diffusion.races.tuning import BATCH, RATE, taken
from patch_diffusion.runs.chart import Guide, chart, number
from patch_diffusion.runs.floor import FLOOR
from patch_diffusion.runs.history import DISTANCES, TIMES, Curve, Point
from patch_diffusion.runs.page import option_text, page, table, wide_table
from patch_diffusion.training.budget import Cadence

_COUNTED = (
    "Only the training time of an arm counts. The clock stops for evaluations on held-out images and for checkpoints, "
    "and no pictures of samples are made. Evaluation adds at most 5 % to a budget in minutes; if it would add more, "
    "all arms get fewer evaluations, on fewer images. Distances of samples take no longer than the training. The arms "
    "take turns of some seconds, so that other load on the machine slows all of them alike. Before its end an arm "
    "still has a high learning rate, which makes its loss worse. So a ratio is rather too small than too large."
)


def race_page(title: str, content: Content) -> str:
    """Return an HTML page with the results of a race of several trainings; names and texts in it are escaped.

    Args:
        title: the name of the race.
        content: the content of ``race.json``.
    """
    return page(title, "".join(_parts(title, content)))


def _parts(title: str, content: Content) -> Iterator[str]:
    images, unit = content["images"], content["unit"]
    height, width = images["resolution"]
    yield f"<h1>Race: {escape(title)}</h1>"
    seeds = f"seed{'s' * (len(content['seeds']) > 1)} {', '.join(map(str, content['seeds']))}"
    yield (
        f'<p class="soft">{escape(content["source"])}, {images["trained_on"]:,} images of {height} x {width}; '
        f"{_budgets(content)}; {seeds}; judged by the denoising loss of "
        f"{content['judged_by']['images']} whole images that are held out</p>"
    )
    yield "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences(content))
    if content["tuning"]:
        judges = judges_in_words(content["judged_by"])
        yield f'<p class="soft">{escape(judges[0].upper() + judges[1:])}.</p>'
    yield "<h2>Curves <small>means over the seeds, and their range</small></h2>"
    yield f'<div class="charts">{_charts(content)}</div>'
    if content["standings"]["seeds"]:
        yield f'<h2>At the end</h2><div class="box">{_ends(content)}</div>'
        if len(content["standings"]["seeds"]) > 1:
            yield f'<h2>By seed</h2><div class="box">{_by_seed(content)}</div>'
        yield f'<h2>By noise level</h2><div class="box">{_by_noise(content)}</div>'
    for name, found in content["tuning"].items():
        yield f"<h2>Tuning of {escape(name)}</h2><div class='box'>{_tuning(found, unit)}</div>"
    yield '<div class="two"><section><h2>What differs</h2><div class="box">'
    yield f"{_differences(content)}</div></section><section><h2>How it was measured</h2>"
    yield f'<div class="box"><p>{_COUNTED}</p>{table(_circumstances(content))}</div></section></div>'


def _budgets(content: Content) -> str:
    """Return a phrase on the training budgets of a race: one amount if they are equal, else one for each arm."""
    unit, arms = content["unit"], content["plan"]["arms"]
    own = {name: config[unit] for name, config in arms.items()}
    if len(set(own.values())) == 1:
        return f"{amount(content['budget'], unit)} for each arm"
    return ", ".join(f"{amount(value, unit)} for {name}" for name, value in own.items())


def _charts(content: Content) -> str:
    """Return HTML charts of the loss in a race and its second half, where curves are close, and of sample distances."""
    unit, half = content["unit"].removesuffix("s"), content["budget"] / 2

    def points(measure: str = "loss") -> dict[str, list[Point]]:
        return {name: _points(by_seed, content, measure) for name, by_seed in content["points"].items()}

    def of_losses(title: str, curves: Mapping[str, Sequence[Point]], start: float = 0.0) -> str:
        about, guides = f"of whole images, over {content['unit']}", list(_guides(content, curves))
        drawn = _as_curves(curves) | _floor(content, curves)
        return chart(title, drawn, about=about, over=unit, start=start, guides=guides)

    later = {name: [point for point in found if point.step >= half] for name, found in points().items()}
    drawn = of_losses("Loss of held-out images", points()) + of_losses("In the second half", later, half)
    about = f"of samples from the images trained on, over {content['unit']}"
    for measure in content["distances"]:
        drawn += chart(DISTANCES[measure].capitalize(), _as_curves(points(measure)), about=about, over=unit)
    return drawn


def _as_curves(points: Mapping[str, Sequence[Point]]) -> dict[str, Curve]:
    return {name: Curve.of(found) for name, found in points.items() if found}


def _floor(content: Content, curves: Mapping[str, Sequence[Point]]) -> dict[str, Curve]:
    """Return a level curve, as long as the others, at the loss of the best linear denoiser, if it was measured."""
    floor, times = content.get("linear_floor"), [point.step for found in curves.values() for point in found]
    if not floor or not times:
        return {}
    loss = floor["loss"]
    return {FLOOR: Curve.of([Point(time, loss, loss, loss) for time in dict.fromkeys((min(times), max(times)))])}


def _points(by_seed: Mapping[str, Sequence[Mapping[str, Any]]], content: Content, measure: str = "loss") -> list[Point]:
    """Return a point for each time at which an arm was measured: mean, lowest and highest value over the seeds."""
    time, factor = TIMES[content["unit"]]
    moments: dict[int, list[Mapping[str, Any]]] = {}
    for found in by_seed.values():
        for measured in found:
            if measure in measured:
                moments.setdefault(round(measured["spent"] * content["plan"]["moments"]), []).append(measured)
    return [
        Point(
            factor * statistics.fmean(measured[time] for measured in found),
            statistics.fmean(losses := [measured[measure] for measured in found]),
            min(losses),
            max(losses),
        )
        for _, found in sorted(moments.items())
    ]


def _guides(content: Content, curves: Mapping[str, Sequence[Point]]) -> Iterator[Guide]:
    """Yield a line at the final loss of an arm, from the time another arm reaches that loss to the end of the arm."""
    found, other = content["standings"], opponent(content)
    for name in curves if found["seeds"] and curves[other] else ():
        for mine, theirs in ((name, other), (other, name)) if name != other else ():
            reached = found["reaches"][mine][theirs]
            if reached["at"] is not None and curves[theirs]:
                first = max(reached["at"], curves[theirs][0].step)
                yield Guide(theirs, found["final"][theirs]["loss"], first, curves[theirs][-1].step)


def _ends(content: Content) -> str:
    other = opponent(content)
    compared = [f"has {other}'s loss in", "times as fast", f"{other} has its in"]
    head = ["", "held-out loss", "steps", "images a second", *compared]
    distances = content["distances"]
    finals = [found["final"] for found in distances.values()]
    cells = [
        [*row, *(number(ends[row[0]]["loss"]) if row[0] in ends else "" for ends in finals)] for row in rows(content)
    ]
    return wide_table([*head, *(DISTANCES[measure] for measure in distances)], cells)


def _by_noise(content: Content) -> str:
    seeds, arms = content["standings"]["seeds"], list(content["points"])
    ends = {name: [content["points"][name][str(seed)][-1]["by_noise"] for seed in seeds] for name in arms}
    levels = list(ends[arms[0]][0])
    floor = (content.get("linear_floor") or {}).get("by_noise", {})
    named = [FLOOR] if floor else []
    cells = [
        [
            level,
            *(number(statistics.fmean(end[level] for end in ends[name])) for name in arms),
            *(number(floor[level]) for _ in named if level in floor),
        ]
        for level in levels
    ]
    return wide_table(["sigma", *arms, *named], cells)


def _by_seed(content: Content) -> str:
    found, other, unit = content["standings"], opponent(content), content["unit"]
    arms = list(content["points"])
    head = ["seed", *(f"loss of {name}" for name in arms), *(f"{name}, faster" for name in arms if name != other)]
    cells = []
    for seed in map(str, found["seeds"]):
        times = [found["reaches"][name][other]["by_seed"][seed] for name in arms if name != other]
        losses = [f"{found['final'][name]['by_seed'][seed]:.4f}" for name in arms]
        faster = [f"{its['ratio']:.2f}x in {amount(its['at'], unit)}" if its["ratio"] else "never" for its in times]
        cells.append([seed, *losses, *faster])
    return wide_table(head, cells)


def _tuning(found: Mapping[str, Any], unit: str) -> str:
    """Return HTML on a sweep: what it has taken, what it has left out, and a table with a row for each trial."""
    trials = found["trials"] if "trials" in found else _trials_of_rounds(found["rounds"], unit)
    names = list(trials[0]["options"]) if trials else []
    cells = [
        [
            *(option_text(trial["options"][name]) for name in names),
            option_text(trial["steps"]),
            "-" if trial["loss"] is None else f"{trial['loss']:.4f}",
        ]
        for trial in trials
    ]
    lines = []
    if (options := taken(found)) is not None:
        lines.append("; ".join(f"{name} {option_text(value)}" for name, value in options.items()) or "what was given")
        lines[0] = f"Taken: {lines[0]}."
        if found["outermost"]:
            named = " and ".join(found["outermost"])
            lines[0] += f" It is outermost in {named}: what was not tried may be better."
    if found.get("left_out"):
        lines.append(f"{found['left_out'].capitalize()}.")
    head = [*names, "steps" if "trials" in found else "length", "loss"]
    return "".join(f"<p>{escape(line)}</p>" for line in lines) + (wide_table(head, cells) if cells else "")


def _trials_of_rounds(rounds: Sequence[Mapping[str, Any]], unit: str) -> list[dict[str, Any]]:
    """Return the trials of a sweep of an earlier version, which trained all of a round for equally long."""
    return [
        {
            "options": {BATCH: trial["batch"], RATE: trial["learning_rate"]},
            "steps": length(each["budget"], unit),
            "loss": trial["loss"],
        }
        for each in rounds
        for trial in each["trials"]
    ]


def _differences(content: Content) -> str:
    """Return an HTML table of the options in which arms differ before tuning; the page shows the tuning separately."""
    arms = {name: from_dict(options) for name, options in content["plan"]["arms"].items()}
    cells = [[option, *map(option_text, values.values())] for option, values in differences(arms).items()]
    return wide_table(["", *arms], cells)


def _circumstances(content: Content) -> list[tuple[str, str]]:
    found = []
    for each in content["circumstances"]:
        versions = ", ".join(f"{name} {version}" for name, version in each["versions"].items())
        found += [
            ("device", f"{each['device']}, {each['threads']} CPU threads"),
            ("versions", versions + (f", commit {each['commit']}" if each["commit"] else "")),
        ]
    sigmas = ", ".join(f"{sigma:g}" for sigma in content["judged_by"]["sigmas"])
    judged_by, plan = content["judged_by"], content["plan"]
    times = Cadence(plan["moments"], judged_by.get("stride", 1)).times
    found.append(("judged", f"{counted(times, 'time')} by the loss of {judged_by['images']:,} held-out images"))
    if "samples" in judged_by:
        often = Cadence(times, judged_by["samples_stride"]).times
        found.append(("distances", f"measured {counted(often, 'time')}, of {judged_by['samples']:,} samples"))
    found.append(("noise levels", f"{sigmas} (sigma), with the same noise for all"))
    parameters = dict.fromkeys(f"{num:,}" for num in content["parameters"].values())
    return [*found, ("parameters", " or ".join(parameters))]
