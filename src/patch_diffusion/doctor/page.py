"""The doctor's page: all that was found on one HTML page, which needs no network and no other files."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

from patch_diffusion.doctor.report import (
    Diagnosis,
    State,
    comparison_text,
    facts,
    peaks_text,
    race_text,
    ratios,
    speed_rows,
    verdict,
)
from patch_diffusion.files import write_text
from patch_diffusion.runs.page import page, table, wide_table

_PRIVACY = (
    "This page and the JSON file hold no names of users, machines or folders, no data, and nothing of the environment. "
    "Send both with an issue."
)


def write_page(path: Path, found: Diagnosis) -> None:
    """Write the page of a diagnosis to a file, whose folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, doctor_page(found))


def doctor_page(found: Diagnosis) -> str:
    """Return the HTML page of a diagnosis; all texts in it are escaped."""
    return page("Doctor of patch_diffusion", "".join(_parts(found)))


def _parts(found: Diagnosis) -> Iterator[str]:
    yield "<h1>Does it work on this machine?</h1>"
    look = "A quick look" if found.quick else "All checks"
    minutes = f"{found.seconds / 60:.1f} minutes"
    yield f'<p class="soft">{look} of patch_diffusion {escape(found.version)}, in {minutes}</p>'
    yield f'<p class="{"box warning" if found.failed else "state"}">{escape(verdict(found))}</p>'
    yield f'<div class="tiles">{"".join(_tiles(found))}</div>'
    yield f'<h2>Machine</h2><div class="box">{table(facts(found.machine))}</div>'
    if found.checks:
        yield f'<h2>What works</h2><div class="box">{_checks(found)}</div>'
    if found.comparisons:
        yield "<h2>Equal results <small>relative differences of two ways to compute the same</small></h2>"
        yield f'<div class="box">{_comparisons(found)}</div>'
    if found.speeds:
        yield "<h2>Speed of training <small>whole steps on images of 64 x 64</small></h2>"
        yield f'<div class="box">{_speeds(found)}</div>'
    if found.race is not None:
        yield f'<h2>A short race</h2><div class="box">{escape(race_text(found.race))}</div>'
    if found.left_out:
        yield f'<h2>Left out</h2><p class="box">As the time was over: {escape("; ".join(found.left_out))}.</p>'
    yield f'<p class="soft">{_PRIVACY}</p>'


def _tiles(found: Diagnosis) -> Iterator[str]:
    states = [check.state for check in found.checks]
    tiles = [("checks that work", f"{states.count('ok')} of {len(states) - states.count('not here')}")]
    tiles.append(("do not apply here", str(states.count("not here"))))
    tiles.append(
        ("differences in tolerance", f"{sum(each.is_ok for each in found.comparisons)} of {len(found.comparisons)}")
    )
    fastest = next((speed for speed in found.speeds if speed.images_per_second), None)
    if fastest is not None:
        tiles.append((f"images/s, {fastest.name}", f"{fastest.images_per_second:,.3g}"))
    for name, text in tiles:
        yield f"<div><b>{escape(text)}</b><small>{escape(name)}</small></div>"


def _checks(found: Diagnosis) -> str:
    """Return an HTML table of the checks; those that failed stand out, with what to do."""
    rows = []
    for check in found.checks:
        advice = f"<br>To do: {escape(check.advice)}." if check.advice else ""
        seconds = f" <small>{check.seconds:.0f} s</small>" if check.seconds else ""
        rows.append(_row(check.name, check.state, f"{escape(check.told)}{seconds}{advice}"))
    return f"<table>{''.join(rows)}</table>"


def _comparisons(found: Diagnosis) -> str:
    rows = [
        _row(f"{each.name}: {each.what}", "ok" if each.is_ok else "failed", escape(comparison_text(each)))
        for each in found.comparisons
    ]
    return f"<table>{''.join(rows)}</table>"


def _row(name: str, state: State, html: str) -> str:
    mark = {"ok": "state", "failed": "warning", "not here": "soft"}[state]
    return f'<tr><th scope="row">{escape(name)}</th><td><span class="{mark}">{state}</span> {html}</td></tr>'


def _speeds(found: Diagnosis) -> str:
    head, *rows = speed_rows([speed for speed in found.speeds if not speed.told])
    failed = "".join(
        f'<p class="warning">{escape(speed.name)}: {escape(speed.told)}</p>' for speed in found.speeds if speed.told
    )
    told = "".join(f"<p>{escape(sentence)}</p>" for sentence in ratios(found.speeds))
    peak = f'<p class="soft">{escape(peaks_text(found))}</p>'
    return f"{wide_table(head, rows)}{failed}{told}{peak}"
