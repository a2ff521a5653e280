"""Line charts as HTML: an SVG that scales to any width, with labels that keep their size."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

from patch_diffusion.runs.history import Curve, Point

KINDS, LEVELS = 6, 8  # number of colours for kinds (such as patch sizes) and for rising levels (of noise)
_SIDE = 1000  # width and height of the drawing, in SVG units
_LETTER_WIDTH, _LETTER_HEIGHT = 0.05, 0.075  # size of a curve's letter, as a fraction of the drawing
_LOGARITHMIC_FROM = 4.0  # ratio of the highest value to the lowest from which the axis is logarithmic


@dataclass(frozen=True)
class Guide:
    """A dashed horizontal line in a chart, at ``value`` from step ``first`` to ``last``, in the colour of one curve."""

    curve: str
    value: float
    first: float
    last: float


def chart(
    title: str,
    curves: Mapping[str, Curve],
    *,
    about: str = "",
    rising: bool = False,
    from_zero: bool = False,
    over: str = "step",
    start: float = 0.0,
    guides: Sequence[Guide] = (),
    labels: Mapping[str, str] | None = None,
) -> str:
    """Draw curves over steps as an HTML figure; return an empty string if no curve has a value yet.

    The value axis is logarithmic where values span a wide range. A band shows the range of values joined in a point.

    Args:
        title, about: heading of the figure, and a few words of explanation.
        curves: the curves by name.
        rising: True if the curves are of rising levels (of noise), which get the colours of a scale from low to high.
        from_zero: begin the value axis at zero.
        over: the unit of the horizontal axis, such as "minute", where it is not steps.
        start: the value at which the horizontal axis begins.
        guides: dashed lines to compare the curves with.
        labels: the letter of each curve by its name, shown at the end of the curve and in the key; curves that are
            not in this chart may have one too. With letters, bands are not drawn.
    """
    points = {name: curve.points() for name, curve in curves.items() if curve}
    if not points:
        return ""
    if labels is not None:  # the bands of many curves would hide one another
        points = {name: [replace(each, least=each.value, most=each.value) for each in points[name]] for name in points}
    every = [point for of_curve in points.values() for point in of_curve]
    lines = [guide.value for guide in guides if guide.curve in points]
    axis = _Axis([point.least for point in every] + [point.most for point in every] + lines, from_zero)
    last_step = max(point.step for point in every)
    span = (start, last_step if last_step > start else start + 1.0)
    kinds = colours(len(points), rising)
    if labels is not None:  # so that a run has the same colour in every chart
        own_colours = dict(zip(labels, colours(len(labels)), strict=True))
        kinds = [own_colours[name] for name in points]
    drawn = "".join(
        _drawn(of_curve, axis, span, colour) for of_curve, colour in zip(points.values(), kinds, strict=True)
    )
    own = dict(zip(points, kinds, strict=True))
    drawn += "".join(_guide(guide, axis, span, own[guide.curve]) for guide in guides if guide.curve in own)
    names = "".join(
        f'<span class="{colour}"><i></i>{_lettered(name, labels)} <b>{number(of_curve[-1].value)}</b></span>'
        for (name, of_curve), colour in zip(points.items(), kinds, strict=True)
    )
    values = {
        "over": over,
        "first": span[0],
        "last": span[1],
        "curves": [[[float(f"{point.step:.9g}"), number(point.value)] for point in found] for found in points.values()],
    }
    labels_y = "".join(
        f'<span style="top:{100 * (1 - axis.place(value)):.2f}%">{number(value)}</span>' for value in axis.ticks
    )
    lines_y = "".join(f'<path class="grid" d="M0 {_y(axis.place(value))}H{_SIDE}"/>' for value in axis.ticks)
    labels_x = "".join(
        f'<span style="left:{100 * _part(value, span):.2f}%">{_steps(value)}</span>' for value in even(*span, 5)
    )
    ends = "" if labels is None else _ends({labels[name]: points[name][-1] for name in points}, axis, span, kinds)
    about = f" <small>{escape(about)}</small>" if about else ""
    # No text of a run may end the HTML script element around the JSON.
    in_script = json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<figure class="chart"><figcaption>{escape(title)}{about}</figcaption>'
        f'<div class="key">{names}<span class="at"></span></div>'
        f'<div class="plot{" ended" if ends else ""}"><div class="y">{labels_y}</div><div class="area">'
        f'<svg viewBox="0 0 {_SIDE} {_SIDE}" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">'
        f'{lines_y}{drawn}</svg>{ends}<div class="cursor"></div></div><div class="x">{labels_x}</div></div>'
        f'<script type="application/json">{in_script}</script></figure>'
    )


class _Axis:
    """The value axis of a chart, linear or logarithmic, with its range and its ticks."""

    def __init__(self, values: Sequence[float], from_zero: bool) -> None:
        low, high = min(values), max(values)
        self.logarithmic = not from_zero and low > 0 and high / low >= _LOGARITHMIC_FROM
        if from_zero:
            low = min(low, 0.0)
        if high - low <= 1e-9 * abs(high):
            low, high = low - (abs(low) or 1.0) / 10, high + (abs(high) or 1.0) / 10
        if self.logarithmic:
            low, high = low / 1.05, high * 1.05
            self.ticks = list(_round_numbers(low, high))
        else:
            margin = (high - low) / 20
            low, high = (low if from_zero and low == 0 else low - margin), high + margin
            self.ticks = list(even(low, high))
        self._low, self._span = self._scaled(low), self._scaled(high) - self._scaled(low)

    def place(self, value: float) -> float:
        """Return the position of a value on the axis: 0 at the lower end, 1 at the upper."""
        return (self._scaled(value) - self._low) / self._span

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.logarithmic else value


def even(low: float, high: float, most: int = 6) -> Iterator[float]:
    """Yield round numbers from ``low`` to ``high`` for the ticks of an axis, evenly spaced, at most ``most`` + 1."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= most)
    for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        yield index * step


def number(value: float) -> str:
    """Format a number with three significant digits, or as an integer from 1,000 to 10 million."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.3g}"
    if abs(value) >= 1e-3:
        return f"{value:.3g}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _round_numbers(low: float, high: float) -> Iterator[float]:
    first, last = math.floor(math.log10(low)), math.floor(math.log10(high))
    factors = (1, 2, 5) if last - first < 3 else (1,)
    every = max(1, (last - first) // 6)
    for exponent in range(first, last + 1, every):
        yield from (value for value in (factor * 10.0**exponent for factor in factors) if low <= value <= high)


def colours(num: int, rising: bool = False) -> list[str]:
    """Return one CSS class per curve, which gives its colour: on a scale from low to high if they are ``rising``."""
    if rising:
        return [f"n{round(index * (LEVELS - 1) / max(num - 1, 1))}" for index in range(num)]
    return [f"c{index % KINDS}{' dashed' if index // KINDS % 2 else ''}" for index in range(num)]


def _lettered(name: str, labels: Mapping[str, str] | None) -> str:
    return escape(name) if labels is None else f"<em>{escape(labels[name])}</em> {escape(name)}"


def _ends(lasts: Mapping[str, Point], axis: _Axis, span: tuple[float, float], kinds: Sequence[str]) -> str:
    """Return HTML of the letters that mark the ends of curves, moved apart if they overlap, but not below the chart."""
    lasts_in_order = sorted(zip(lasts.items(), kinds, strict=True), key=lambda each: -each[0][1].value)
    lefts = [_part(last.step, span) for (_, last), _ in lasts_in_order]
    tops = [1 - axis.place(last.value) for (_, last), _ in lasts_in_order]

    def near(place: int, others: Sequence[int]) -> list[float]:
        return [tops[other] for other in others if abs(lefts[other] - lefts[place]) < _LETTER_WIDTH]

    for place in range(len(tops)):
        tops[place] = max([tops[place], *(top + _LETTER_HEIGHT for top in near(place, range(place)))])
    for place in reversed(range(len(tops))):
        tops[place] = min(
            [tops[place], 1.0, *(top - _LETTER_HEIGHT for top in near(place, range(place + 1, len(tops))))]
        )
    return "".join(
        f'<em class="{kind}" style="left:{100 * left:.2f}%;top:{100 * top:.2f}%">{escape(letter)}</em>'
        for ((letter, _), kind), left, top in zip(lasts_in_order, lefts, tops, strict=True)
    )


def _drawn(points: Sequence[Point], axis: _Axis, span: tuple[float, float], colour: str) -> str:
    def corner(step: float, value: float) -> str:
        return f"{_SIDE * _part(step, span):.1f} {_y(axis.place(value))}"

    band = ""
    if any(point.most > point.least for point in points):
        upper = [corner(point.step, point.most) for point in points]
        lower = [corner(point.step, point.least) for point in reversed(points)]
        band = f'<path class="band" d="M{"L".join(upper + lower)}Z"/>'
    line = "M" + "L".join(corner(point.step, point.value) for point in points)
    single = "h0" if len(points) == 1 else ""
    return f'<g class="{colour}">{band}<path class="{"dot" if single else "line"}" d="{line}{single}"/></g>'


def _guide(guide: Guide, axis: _Axis, span: tuple[float, float], colour: str) -> str:
    first, last = (_SIDE * _part(step, span) for step in (guide.first, guide.last))
    return f'<path class="guide {colour}" d="M{first:.1f} {_y(axis.place(guide.value))}H{last:.1f}"/>'


def _part(step: float, span: tuple[float, float]) -> float:
    """Return the horizontal position of a step in a chart: 0 at the left end of the axis, 1 at the right end."""
    first, last = span
    return (step - first) / (last - first)


def _y(place: float) -> str:
    return f"{_SIDE * (1 - place):.1f}"


def _steps(value: float) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"
