"""The text that ``inspect`` prints: findings about a data set and suggested settings, in readable lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from patch_diffusion.advice import Advice, Prospect
from patch_diffusion.cli.options import value_words
from patch_diffusion.cli.tables import points, wrapped
from patch_diffusion.config import Config
from patch_diffusion.data.inspection.inspect import Findings
from patch_diffusion.patches.schedule import shares_text
from patch_diffusion.training.choices.prospects import MEASURED
from patch_diffusion.training.forecast import Forecast, duration
from patch_diffusion.training.watching.thinning import SHARE

_KINDS = 8  # most sizes, file endings and so on that are listed
_NAMED = 3  # most images that are listed by name


def inspection(findings: Findings, advice: Advice, preset: str | None, command: str) -> str:
    """Format findings and advice in lines of 80 columns; only long names and the training command may be longer."""
    lines = [*points(_of_data(findings)), "", "SETTINGS", *points(_of_settings(findings, advice, preset))]
    if advice.refusal:
        lines += ["", *wrapped("Training would be refused: " + advice.refusal)]
    if advice.warnings:
        lines += ["", "NOTES"]
        for warning in advice.warnings:
            lines += wrapped("- " + warning, indent=2)
    if command:
        lines += ["", "TO TRAIN", command]
    return "\n".join(lines)


def _of_data(findings: Findings) -> Iterator[tuple[str, str]]:
    num = f"{findings.num_images:,}"
    if findings.num_read < findings.num_images:
        num += f", of which {findings.num_read:,} were checked"
    unusable = f"; {len(findings.unusable):,} unreadable" if findings.unusable else ""
    endings = _counted(findings.endings) if any(findings.endings) else ""
    yield "data", findings.source
    yield "images", f"{num}{', ' * bool(endings)}{endings}{unusable}"
    yield "sizes", _counted({f"{height}x{width}": count for (height, width), count in findings.sizes.items()})
    yield "kinds", _counted(findings.kinds)
    if findings.means:
        low, high = findings.span
        yield "values", f"{findings.values[0]:g} to {findings.values[1]:g}"
        yield "mean", f"{_shares(findings.means)} (for each channel; {low:g} to {high:g} scaled to 0 to 1)"
        yield "deviation", _shares(findings.deviations)
    yield "classes", _classes(findings.class_counts, findings.folders)
    yield from findings.conditions.items()
    yield "unreadable", _named([f"{name} ({why})" for name, why in findings.unusable.items()])
    yield "empty", _named(findings.nearly_constant)
    yield "equal", _named([" = ".join(group[:_NAMED]) + ", ..." * (len(group) > _NAMED) for group in findings.equal])
    yield "alike", _named([f"{one} ~ {other}" for one, other, _ in findings.near])


def _classes(counts: Mapping[str, int], folders: Mapping[str, int]) -> str:
    """Return the classes in words; sub-folders may be some, if the data have no labels."""
    if not counts:
        return f"no labels, but {len(folders):,} sub-folders" if folders else "none"
    least, most = min(counts.values()), max(counts.values())
    return f"{len(counts):,}, of " + (f"{least:,} images each" if least == most else f"{least:,} to {most:,} images")


def _of_settings(findings: Findings, advice: Advice, preset: str | None) -> Iterator[tuple[str, str]]:
    config, foreseen = advice.config, advice.forecast
    if preset is not None:
        yield "preset", preset
    for name, reason in advice.reasons.items():
        yield name, f"{' '.join(value_words(config, name))} ({reason})"
    if advice.sizes:
        yield "steps on", shares_text(advice.sizes, config.patches.kind)
    if advice.sigma_data is not None:
        p_mean = config.noise.p_mean
        yield "noise", f"sigma_data {advice.sigma_data:.3f}{'' if p_mean is None else f', p_mean {p_mean:g}'}"
    if foreseen is not None:
        room = "" if advice.memory is None else f" of {advice.memory / 2**30:,.0f}"
        yield "network", f"{config.network.kind}, {foreseen.parameters:,} parameters"
        yield "memory", f"{foreseen.memory / 2**30:,.1f}{room} GB, on {foreseen.device}"
        yield (
            "speed",
            f"{foreseen.images_per_second:,.1f} images per second on this machine, in batches of {config.batch}",
        )
        yield _budget(findings, config, foreseen)
    if advice.prospect is not None:
        yield from _of_prospect(advice.prospect)


def _of_prospect(prospect: Prospect) -> Iterator[tuple[str, str]]:
    """Yield rows on what the budget will make of the images: the loss to expect, and the time for other sizes."""
    if prospect.floor is not None and prospect.losses is not None:
        low, high = (f"{loss:.2g}" for loss in prospect.losses)
        names = " and ".join(each.name for each in MEASURED)
        yield "floor", f"{prospect.floor:.2g}, the held-out loss of the best linear denoiser of these images"
        yield "expected", f"a held-out loss of {low if low == high else f'{low} to {high}'}, as {names} had"
    times = [f"{duration(minutes)} at {side}x{side}" for side, minutes in prospect.layout.items()]
    slow = "too slow here: " if prospect.is_short else ""
    yield "layout", f"{slow}it takes about {', '.join(times)} on this machine to learn what is where in the images"


def _budget(findings: Findings, config: Config, foreseen: Forecast) -> tuple[str, str]:
    """Return an estimate for the budget as a text row: the images seen in minutes, or minutes for images or steps."""
    minutes = config.minutes if config.wall_minutes is None else config.wall_minutes / (1 + SHARE)
    if minutes is not None:
        images = foreseen.images_in(minutes)
        times = f"each of the {findings.num_images:,} about {images / findings.num_images:,.1f} times"
        return f"{config.minutes or config.wall_minutes:g} minutes", f"about {images:,} images, so {times}"
    budget = f"{config.images:,} images" if config.images is not None else f"{config.steps:,} steps"
    return "time", f"about {duration(foreseen.minutes_for(steps=config.steps, images=config.images))} for {budget}"


def _counted(counts: Mapping[str, int]) -> str:
    """Format the counts of images by kind, such as size: a single kind as its name, several each with its count."""
    if len(counts) < 2:
        return next(iter(counts), "none")
    shown = [f"{name} ({count:,})" for name, count in list(counts.items())[:_KINDS]]
    return ", ".join(shown) + f" and {len(counts) - _KINDS:,} others" * (len(counts) > _KINDS)


def _named(names: Sequence[str]) -> str:
    if not names:
        return "none"
    return f"{len(names):,}: {', '.join(names[:_NAMED])}{', ...' * (len(names) > _NAMED)}"


def _shares(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
