"""The results of a race, several trainings compared at equal time, as sentences and table rows for people to read."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from patch_diffusion.races.arms import WHOLE
from patch_diffusion.runs.floor import FLOOR
from patch_diffusion.runs.history import DISTANCES
from patch_diffusion.runs.page import option_text

Content = Mapping[str, Any]
"""The content of ``race.json``, the results of a race."""

ENOUGH_JUDGES = 64
"""The number of held-out images below which a race with a sweep says that few judge."""


def opponent(content: Content) -> str:
    """Return the name of the arm to compare the others with: "whole" (trained on whole images) or else the first."""
    arms = list(content["plan"]["arms"])
    return WHOLE if WHOLE in arms else arms[0]


def rows(content: Content) -> list[list[str]]:
    """Return a table row, a list of text cells, for each arm at the end of a race; numbers are means over the seeds.

    The last row is that of the linear floor, the loss of the best linear denoiser, if it was measured.

    The cells are: name, loss, steps, images a second, the time to the final loss of `opponent`, how many times as fast
    that is, and the opponent's time to the arm's final loss.
    """
    found, other = content["standings"], opponent(content)
    result = []
    for name in content["plan"]["arms"]:
        ends = [content["points"][name][str(seed)][-1] for seed in found["seeds"]]
        mine = found["reaches"].get(name, {}).get(other)
        theirs = found["reaches"].get(other, {}).get(name)
        result.append(
            [
                name,
                _loss(found["final"][name]),
                f"{statistics.fmean(end['step'] for end in ends):,.0f}" if ends else "",
                f"{statistics.fmean(end['images'] / end['seconds'] for end in ends):,.0f}" if ends else "",
                amount(mine["at"], content["unit"]) if mine else "",
                f"{mine['ratio']:.2f}x" if mine and mine["ratio"] else "",
                amount(theirs["at"], content["unit"]) if theirs else "",
            ]
        )
    floor = content.get("linear_floor")
    return [*result, *([[FLOOR, f"{floor['loss']:.4f}", *[""] * (len(result[0]) - 2)]] if floor else [])]


def sentences(content: Content) -> list[str]:
    """Return sentences on how much faster each arm of a race is than `opponent`, and on seeds that are not finished."""
    found, other = content["standings"], opponent(content)
    lines = []
    measures = {"loss": found} | {DISTANCES[name]: each for name, each in content["distances"].items()}
    for what, standings in measures.items():
        for name in content["plan"]["arms"] if found["seeds"] else ():
            if name != other:
                lines += [_sentence(content, standings, what, *pair) for pair in ((name, other), (other, name))]
    for seed in content["seeds"]:
        if seed not in found["seeds"]:
            spent = [
                points[str(seed)][-1]["spent"] if points[str(seed)] else 0.0 for points in content["points"].values()
            ]
            lines.append(f"Seed {seed}: {min(*spent, 1.0):.0%} of the budget is spent.")
    return lines


def judges_in_words(judged_by: Mapping[str, Any]) -> str:
    """Return a sentence on the held-out images that choose in a sweep, and those that judge a race after it."""
    judges, more = judged_by["images"], "hold out more with a larger --held-out"
    if "chosen_by" not in judged_by:
        return (
            f"the same {judges:,} held-out images choose in the search for settings and judge the race, which favours "
            f"the arm that was tuned: {more}"
        )
    few = max(judges, judged_by["chosen_by"]) < ENOUGH_JUDGES  # and not by lack of time alone
    told = f"; these are few: {more}, or leave out the search with --tune 0" if few else ""
    return (
        f"{judged_by['chosen_by']:,} held-out images choose in the search for settings, and {judges:,} others judge "
        f"the race{told}"
    )


def trial_in_words(trial: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> str:
    """Return a phrase on a trial of a sweep, with the options that differ from those of the first trial."""
    first = before[0]["options"] if before else trial["options"]
    changed = ", ".join(
        f"{name} {option_text(value)}" for name, value in trial["options"].items() if first[name] != value
    )
    loss = "did not learn" if trial["loss"] is None else f"loss {trial['loss']:.4f}"
    return f"{len(before) + 1}. {trial['steps']:,} steps, {changed or 'as given'}: {loss}"


def amount(value: float | None, unit: str) -> str:
    """Return an amount of training as text with its unit (minutes, steps or images); "never" for None."""
    if value is None:
        return "never"
    return f"{number_of(value, unit)} {'min' if unit == 'minutes' else unit}"


def length(value: float, unit: str) -> str:
    """Return a training budget as text with its unit; a time below one minute is given in seconds."""
    return f"{60 * value:.3g} s" if unit == "minutes" and value < 1 else amount(value, unit)


def number_of(value: float, unit: str) -> str:
    """Return a number of minutes (with fractions), steps or images (whole) as text without the unit."""
    return f"{value:.3g}" if unit == "minutes" else f"{value:,.0f}"


def _sentence(content: Content, standings: Mapping[str, Any], what: str, name: str, other: str) -> str:
    found, seeds = standings["reaches"][name][other], standings["seeds"]
    end = standings["final"][other]["loss"]
    what = f"the final {what} of {other} ({f'{end:.4f}' if what == 'loss' else f'{end:.4g}'})"
    if found["ratio"] is None:
        which = f" with {len(seeds) - found['reached']} of {len(seeds)} seeds" if found["reached"] else ""
        return f"{name} does not reach {what}{which}."
    ratios = [each["ratio"] for each in found["by_seed"].values()]
    spread = f" ({min(ratios):.2f} to {max(ratios):.2f} with {len(ratios)} seeds)" if len(ratios) > 1 else ""
    within = f"{number_of(found['at'], content['unit'])} of {amount(content['budget'], content['unit'])}"
    return f"{name} reaches {what} in {within}, {found['ratio']:.2f} times as fast{spread}."


def _loss(final: Mapping[str, Any]) -> str:
    if final["loss"] is None:
        return ""
    return f"{final['loss']:.4f}" + (f" ±{final['deviation']:.4f}" if final["deviation"] is not None else "")
