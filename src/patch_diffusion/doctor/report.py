"""Records of what the doctor found: for JSON, for a terminal of 80 columns, and for `page`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from patch_diffusion.errors import counted

State = Literal["ok", "failed", "not here"]
"""The end of a check: it works, it does not, or this machine lacks what it is about."""

FORMAT = 1
"""The number of the layout of the JSON file; it changes if a name changes its meaning."""

_WIDTH, _INDENT = 80, 11
_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        name: what was checked.
        state: see `State`.
        seconds: the time it took, the start of its process included.
        told: one line on what was found, or on why it failed.
        advice: what to do if it failed; else empty.
    """

    name: str
    state: State
    seconds: float
    told: str
    advice: str = ""


@dataclass(frozen=True)
class Comparison:
    """Losses, gradients, samples or weights, computed in two ways.

    Args:
        name: the two ways.
        what: what was compared.
        difference: relative to the size of what is expected; None if it is no number, or there is none.
        tolerance: the largest difference that is right.
        told: why there is no difference; else empty.
    """

    name: str
    what: str
    difference: float | None
    tolerance: float
    told: str = ""

    @property
    def is_ok(self) -> bool:
        """True if the difference is within its tolerance."""
        return self.difference is not None and self.difference <= self.tolerance


@dataclass(frozen=True)
class Speed:
    """The speed of training a preset.

    Args:
        preset: its name.
        images: "patches", as the preset has them, or "whole" images.
        way: "eager" or "compiled".
        format: the number format.
        batch: whole images in a step.
        images_per_second, steps_per_second: of whole steps, data and optimizer included.
        flops_per_image: operations of the network on an image, or on the patches of it, forward and backward.
        utilisation: the share of the measured speed of matrix products in the same format.
        peak_bytes: the most memory.
        seconds_of_first_steps: the time until all patch sizes were seen, which is that of compiling.
        predicted: images a second by the roofline; None if nothing is predicted.
        told: why there are no figures; else empty.
    """

    preset: str
    images: str
    way: str
    format: str = ""
    batch: int | None = None
    images_per_second: float | None = None
    steps_per_second: float | None = None
    flops_per_image: float | None = None
    utilisation: float | None = None
    peak_bytes: int | None = None
    seconds_of_first_steps: float | None = None
    predicted: float | None = None
    told: str = ""

    @property
    def name(self) -> str:
        """The preset, and how it was trained."""
        return f"{self.preset}, {self.images}, {self.way}"


@dataclass(frozen=True)
class ShortRace:
    """A race that is too short to say which arm is faster: a sign that both learn.

    Args:
        minutes: the training time of each arm.
        losses: the held-out loss of whole images of each arm, at the beginning and at the end.
        images_per_second: of each arm.
        told: why there is none; else empty.
    """

    minutes: float
    losses: dict[str, list[float]] = field(default_factory=dict)
    images_per_second: dict[str, float] = field(default_factory=dict)
    told: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All that the doctor found on a machine, see `diagnose`.

    Args:
        version: that of this package.
        quick: True if it was a quick look.
        seconds: the time it took.
        machine: see `patch_diffusion.doctor.machine`.
        checks: what works.
        comparisons: whether several ways to compute agree.
        products: operations a second of matrix products, by number format.
        bandwidth: bytes a second of copies on the device; None if it was not measured.
        speeds: of presets.
        race: a short race; None if there was none.
        left_out: the names of what did not fit into the time.

    >>> from patch_diffusion.doctor.report import Finding
    >>> check = Finding("sampling", "failed", seconds=2.1, told="not with heun", advice="take another solver")
    >>> found = Diagnosis(version="0.2.0", quick=True, seconds=61.0, machine={}, checks=[check])
    >>> found.failed
    ['sampling']
    """

    version: str
    quick: bool
    seconds: float
    machine: dict[str, Any]
    checks: list[Finding] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    products: dict[str, float] = field(default_factory=dict)
    bandwidth: float | None = None
    speeds: list[Speed] = field(default_factory=list)
    race: ShortRace | None = None
    left_out: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """The names of what failed: checks, comparisons, speeds and the race."""
        return [
            *(check.name for check in self.checks if check.state == "failed"),
            *dict.fromkeys(each.name for each in self.comparisons if not each.is_ok),
            *(speed.name for speed in self.speeds if speed.told),
            *(["race"] if self.race is not None and self.race.told else []),
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the diagnosis as a dict that JSON can store."""
        return {"doctor": FORMAT, **asdict(self), "failed": self.failed}

    def text(self) -> str:
        """Return the diagnosis as lines of 80 columns."""
        return "\n".join(_lines(self))


def verdict(found: Diagnosis) -> str:
    """Return a sentence that says whether all works."""
    num = len(found.failed)
    rest = f" {len(found.left_out)} more did not fit into the time." if found.left_out else ""
    if not num:
        return f"Everything that was tried works.{rest}"
    return f"{counted(num, 'thing')} failed: {'; '.join(found.failed)}.{rest}"


def facts(machine: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the facts of a machine as names and texts."""
    processor, versions = machine["processor"], machine["versions"]
    cores = f"{processor['cores']} cores"
    if processor["usable_cores"] != processor["cores"]:
        cores += f", {processor['usable_cores']} of them for this process"
    if processor["quota"] is not None:
        cores += f", limited to {processor['quota']:g}"
    commit = f", commit {machine['commit']}" if machine["commit"] else ""
    lacks = [name for name, missing in machine["missing"].items() if missing]
    rows = [
        ("package", f"patch_diffusion {versions['patch_diffusion']}{commit}"),
        ("system", f"{machine['system']}, Python {versions['python']}, torch {versions['torch']}"),
        ("processor", f"{processor['name']}, {cores}, {processor['threads']} threads"),
        (
            "it has",
            f"{processor['instructions']}, {'bf16' if processor['bf16'] else 'no bf16'}, {size(processor['memory'])}, "
            f"{'a' if processor['compiler'] else 'no'} C++ compiler",
        ),
        *((f"GPU {place}", _gpu(gpu)) for place, gpu in enumerate(machine["gpus"])),
    ]
    if machine["drivers"]:
        rows.append(("drivers", ", ".join(f"{name} {version}" for name, version in machine["drivers"].items())))
    return [*rows, ("extras", f"not complete: {', '.join(lacks)}" if lacks else "all complete")]


def _gpu(gpu: dict[str, Any]) -> str:
    free = "" if gpu.get("free") is None else f" ({size(gpu['free'])} free)"
    capability = f", capability {gpu['capability']}" if "capability" in gpu else ""
    return f"{gpu['name']}, {size(gpu['memory'])}{free}{capability}"


def size(num_bytes: float | None) -> str:
    """Return a number of bytes as text."""
    if num_bytes is None:
        return "unknown memory"
    return f"{num_bytes / 2**30:,.1f} GB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.0f} MB"


def rate(per_second: float) -> str:
    """Return a number of operations a second as text, such as "1.5 TFLOP/s"."""
    factor, unit = next((each for each in _UNITS if per_second >= each[0]), _UNITS[-1])
    return f"{per_second / factor:,.3g} {unit}FLOP/s"


def products_text(products: dict[str, float]) -> str:
    """Return the speed of matrix products as a phrase."""
    return ", ".join(f"{name} {rate(value)}" for name, value in products.items())


def peaks_text(found: Diagnosis) -> str:
    """Return what the device was measured to reach as a sentence."""
    copies = "" if found.bandwidth is None else f"; copies: {found.bandwidth / 1e9:,.3g} GB/s"
    return f"Peak, of matrix products: {products_text(found.products)}{copies}."


def speed_rows(speeds: Sequence[Speed]) -> list[list[str]]:
    """Return the head and a row of texts for each measured speed."""
    predicts = any(speed.predicted for speed in speeds)
    head = ["preset", "images", "way", "format", "images/s", "steps/s", "of peak", "memory"]
    rows = [
        [
            *(speed.preset, speed.images, speed.way, speed.format.replace("float", "fp").replace("bfp", "bf")),
            *(_number(speed.images_per_second), _number(speed.steps_per_second)),
            "" if speed.utilisation is None else f"{speed.utilisation:.0%}",
            "" if speed.peak_bytes is None else size(speed.peak_bytes),
            *([_number(speed.predicted)] if predicts else []),
        ]
        for speed in speeds
    ]
    return [[*head, *(["predicted"] if predicts else [])], *rows]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratios(speeds: Sequence[Speed]) -> Iterator[str]:
    """Yield a sentence on each pair of speeds that differs in one thing: patches or whole, compiled or eager."""
    known = {(speed.preset, speed.images, speed.way): speed for speed in speeds if not speed.told}
    for (preset, images, way), speed in known.items():
        if images == "patches" and (whole := known.get((preset, "whole", way))):
            saved = _ratio(whole.flops_per_image, speed.flops_per_image)
            yield (
                f"{preset}, {way}: patches train on {_ratio(speed.images_per_second, whole.images_per_second)} times "
                f"the images a second of whole images, with {saved} times fewer operations an image."
            )
        if way == "compiled" and (eager := known.get((preset, images, "eager"))):
            faster = _ratio(speed.images_per_second, eager.images_per_second)
            yield f"{preset}, {images}: compiled, it trains on {faster} times the images a second of eager."


def _ratio(one: float | None, other: float | None) -> str:
    return f"{one / other:.2f}" if one and other else "unknown"


def race_text(race: ShortRace) -> str:
    """Return the result of the short race as a sentence."""
    if race.told:
        return f"failed: {race.told}"
    arms = [
        f"{name} {' to '.join(f'{loss:.3f}' for loss in dict.fromkeys((losses[0], losses[-1])))} at "
        f"{race.images_per_second[name]:,.0f} images/s"
        for name, losses in race.losses.items()
    ]
    return (
        f"held-out loss of digits in {60 * race.minutes:.0f} s each: {'; '.join(arms)}. Too short to say which is "
        "faster: a race of your own images says that."
    )


def comparison_text(each: Comparison) -> str:
    """Return the difference of a comparison and its tolerance as text."""
    if each.told:
        return each.told
    found = "no number" if each.difference is None else "none" if not each.difference else f"{each.difference:.0e}"
    return f"{found} (at most {each.tolerance:g})"


def _lines(found: Diagnosis) -> Iterator[str]:
    for name, text in facts(found.machine):
        yield from _entry(name, text)
    if found.checks:
        yield from ["", "What works"]
    for check in found.checks:
        yield from _entry(check.state, f"{check.name}: {check.told}{_seconds(check)}")
        if check.advice:
            yield from _entry("", f"To do: {check.advice}.")
    if found.comparisons:
        yield from ["", "Differences of two ways to compute, relative"]
    for each in found.comparisons:
        yield from _entry("ok" if each.is_ok else "failed", f"{each.name}, {each.what}: {comparison_text(each)}")
    if found.speeds:
        yield from ["", "Speed of training, images of 64 x 64"]
        yield from _columns(speed_rows([speed for speed in found.speeds if not speed.told]))
        for speed in found.speeds:
            yield from _entry("failed", f"{speed.name}: {speed.told}") if speed.told else []
        for sentence in ratios(found.speeds):
            yield from textwrap.wrap(sentence, _WIDTH)
        yield from textwrap.wrap(peaks_text(found), _WIDTH)
    if found.race is not None:
        yield from ["", *textwrap.wrap(f"A short race, {race_text(found.race)}", _WIDTH)]
    if found.left_out:
        yield from ["", *textwrap.wrap(f"Left out, as the time was over: {'; '.join(found.left_out)}.", _WIDTH)]
    yield from ["", *textwrap.wrap(verdict(found), _WIDTH)]


def _seconds(check: Finding) -> str:
    return f" ({check.seconds:.0f} s)" if check.seconds else ""


def _entry(name: str, text: str) -> Iterator[str]:
    yield from textwrap.wrap(
        f"{name:<{_INDENT}}{text}", _WIDTH, subsequent_indent=" " * _INDENT, break_long_words=False
    )


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    gap = "  " if sum(widths) + 2 * len(widths) <= _WIDTH else " "
    for row in rows:
        words, numbers = (list(zip(row, widths, strict=True))[part] for part in (slice(4), slice(4, None)))
        cells = [*(f"{cell:<{width}}" for cell, width in words), *(f"{cell:>{width}}" for cell, width in numbers)]
        yield gap.join(cells).rstrip()
