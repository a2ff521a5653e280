"""The report of a training run, ``report.html``: one page that needs no network and no other files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from patch_diffusion.config import BUDGETS, Config
from patch_diffusion.config_dict import flat_options
from patch_diffusion.errors import InputError
from patch_diffusion.files import check_writable, user_path, write_text
from patch_diffusion.presets import PRESETS, nearest_preset
from patch_diffusion.runs.chart import Guide, chart, number
from patch_diffusion.runs.floor import FLOOR, LinearFloor, read_floor
from patch_diffusion.runs.folder import ModelFacts, RunFolder, tuned_in_words
from patch_diffusion.runs.history import DISTANCES, ENOUGH_IMAGES, SHARES, Curve, History, shows_few, size_in_words
from patch_diffusion.runs.page import option_text, page, table
from patch_diffusion.runs.pictures import as_data, evenly_spaced
from patch_diffusion.runs.retention import read_state
from patch_diffusion.runs.time_spent import clock

REPORT_FILE = "report.html"

_PICTURES = 8
# Options that training settles without a note, so that a run does not tell whether they were given.
_SETTLED = {
    *("data.held_out", "optimizer.learning_rate", "optimizer.betas", "optimizer.decay"),
    *("noise.p_mean", "noise.p_std", "noise.sigma_data", "noise.sigma_min", "noise.sigma_max"),
    *(
        f"network.{name}"
        for name in ("blocks", "multipliers", "attention", "dropout", "label_dropout", "depth", "heads")
    ),
    *("network.token", "batch", "engine.accumulation"),
}
_CLASSES = 20  # number of classes that are listed by name


def write_report(run: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write an HTML report of a run on one page: the model and its data, curves, samples, notes and settings.

    The report can be written at any time, also while the run is trained or before it has a log. Text from the run
    is escaped. The page takes at most some 4 MB, however long the run is.

    Args:
        run: the run folder.
        out: an .html file; ``report.html`` in the run folder if None.

    Returns:
        The path of the report.

    Raises:
        InputError: there is no run in the folder, or it is damaged, or ``out`` is not named .html.
    """
    folder = RunFolder(user_path(run))
    path = html_file(folder.path / REPORT_FILE if out is None else out)
    config, facts = folder.read_config()
    history = History.read(folder.log_file)
    title = folder.path.resolve().name
    body = "".join(_parts(title, folder, config, facts, history))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(title, body))
    return path


def html_file(out: str | os.PathLike[str]) -> Path:
    """Return the path of an HTML page; raise InputError if it cannot be written, or does not end in .html or .htm."""
    path = user_path(out)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"a report is written as .html, not as '{path.name}'")
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a page")
    check_writable(path)
    return path


def _parts(title: str, folder: RunFolder, config: Config, facts: ModelFacts, history: History) -> Iterator[str]:
    yield f"<h1>{escape(title)}</h1>{standing(config, facts, history)}"
    if drawn := charts(history, read_floor(folder.floor_file)):
        yield f'<h2>Curves <small>over optimizer steps</small></h2><div class="charts">{drawn}</div>'
    if samples := _samples(sorted(folder.path.glob("samples/*.png"))):
        yield f"<h2>Samples <small>of the averaged weights, from the same seeds</small></h2>{samples}"
    yield about(folder, config, facts, history)


def standing(config: Config, facts: ModelFacts, history: History) -> str:
    """Return the progress of a run, its newest numbers and its warnings as HTML."""
    return (
        f"{_state(config, history)}"
        f'<div class="meter"><div style="width:{100 * min(history.spent, 1):.2f}%"></div></div>'
        f'<div class="tiles">{"".join(_tiles(facts, history))}</div>{_few(config, history)}{_warnings(history)}'
    )


def charts(history: History, floor: LinearFloor | None = None) -> str:
    """Return the curves of a run as HTML charts, with its linear floor; an empty string if there are none yet."""
    return "".join(_charts(history, floor))


def about(folder: RunFolder, config: Config, facts: ModelFacts, history: History) -> str:
    """Return a description of a run as HTML: its data and network, its settings, checkpoints and notes."""
    settings = "".join(f"<h3>{title}</h3>{table(rows)}" for title, rows in _settings(config, history) if rows)
    return (
        '<div class="two"><section><h2>What is trained</h2><div class="box">'
        f"{table(_facts(config, facts))}</div></section><section><h2>Settings</h2>"
        f'<div class="box">{settings}<details><summary>All settings</summary>'
        f"{table([(name, option_text(value)) for name, value in flat_options(config).items()])}</details>"
        "</div></section></div>"
        f'<div class="two"><section><h2>Checkpoints</h2><div class="box">{_checkpoints(folder)}</div></section>'
        f'<section><h2>Notes</h2><div class="box">{_notes(history)}</div></section></div>'
    )


def _settings(config: Config, history: History) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield titles and rows of the settings that are not the defaults, by who chose them.

    A run does not store which preset it was made from, so it is told from the values.
    """
    noted = {note.partition(" ")[0] for _, note in history.notes} | _SETTLED
    preset = None if "network.width" in noted else nearest_preset(config)  # a preset has a width
    options, usual = flat_options(config), flat_options(Config())
    of_preset = usual if preset is None else flat_options(PRESETS[preset])
    others = [name for name, value in options.items() if value != of_preset[name]]
    rows = {name: (name, option_text(value)) for name, value in options.items() if name not in BUDGETS or value}
    yield "Given", [rows[name] for name in others if name in rows and name not in noted]
    yield (
        "Chosen for images, budget and machine, unless you gave them",
        [rows[name] for name in others if name in noted],
    )
    same = [name for name, value in options.items() if value == of_preset[name] != usual[name]]
    yield f"Of the preset {preset}", [rows[name] for name in same]


def _state(config: Config, history: History) -> str:
    budget = next((f"{value:,g} {name.replace('_', ' ')}" for name in BUDGETS if (value := getattr(config, name))), "")
    of = f" of {budget}" if budget else ""
    if history.complete:
        return f'<div><span class="state">Complete</span><span class="soft">{of and f", {budget}"}</span></div>'
    if not history.last:
        return f'<div class="soft">No step is logged yet{of and f", budget {budget}"}</div>'
    return f'<div><span class="state">{min(history.spent, 1):.1%}</span><span class="soft">{of}</span></div>'


def _tiles(facts: ModelFacts, history: History) -> Iterator[str]:
    last = history.last
    if not last:
        return
    tiles = [("step", f"{last['step']:,}"), ("images seen", f"{last['images']:,}")]
    newest, best = history.last_held_out, history.best_held_out
    if newest:
        tiles.append((f"held-out loss, step {newest['step']:,}", number(newest["held_out"]["loss"])))
    if best != newest:
        tiles.append((f"best held-out loss, step {best['step']:,}", number(best["held_out"]["loss"])))
    tiles += [
        (f"training loss, {size_in_words(size, facts.resolution)}", number(loss))
        for size, loss in history.newest_loss.items()
    ]
    samples = history.last_samples.get("samples", {})
    tiles += [(name, number(samples[key])) for key, name in DISTANCES.items() if key in samples]
    if "near_copies" in samples:
        tiles.append(("near copies", f"{samples['near_copies']:.1%}"))
    if history.images_per_second is not None:
        tiles.append(("images a second", number(history.images_per_second)))
    tiles.append(("trained for", clock(last["seconds"])))
    if history.seconds_left is not None and not history.complete:
        tiles.append(("left, about", clock(history.seconds_left)))
    if last.get("skipped"):
        tiles.append(("skipped steps", f"{last['skipped']:,}"))
    for name, text in tiles:
        yield f"<div><b>{escape(text)}</b><small>{escape(name)}</small></div>"


def _charts(history: History, floor: LinearFloor | None) -> Iterator[str]:
    yield chart("Loss by patch size", history.loss, about="mean over pixels, of patches of height x width")
    yield chart("Loss by noise level", history.by_noise, about="sigma in training", rising=True)
    held_out, levels = ({"mean": history.held_out} if history.held_out else {}), history.held_out_by_noise
    dashed = "" if floor is None else f"; dashed: the {FLOOR}, that of the best linear denoiser"
    floors = {"mean": floor.loss, **floor.by_noise} if floor is not None else {}
    about = f"whole images that are not trained on{dashed}"
    yield chart("Loss of held-out images", held_out, about=about, guides=_guides(held_out, floors))
    yield chart("Held-out loss by patch size", history.held_out_by_size, about="mean over noise levels")
    guides = _guides(levels, floors)
    yield chart("Held-out loss by noise level", levels, about=f"sigma{dashed}", rising=True, guides=guides)
    for name, title in DISTANCES.items():
        curves = {"samples": history.samples[name]} if name in history.samples else {}
        yield chart(title.capitalize(), curves, about="of samples to the images that are trained on")
    near = {label: history.samples[name] for name, label in SHARES.items() if name in history.samples}
    yield chart("Near copies of training images", near, about="shares of images and patches", from_zero=True)
    yield chart("Speed", {"images a second": history.speed}, from_zero=True)
    yield chart("Learning rate", {"learning rate": history.learning_rate}, from_zero=True)


def _guides(curves: Mapping[str, Curve], values: Mapping[str, float]) -> list[Guide]:
    """Return a line across a chart at the value of each curve that has one."""
    ends = [point.step for curve in curves.values() for point in curve.points()]
    return [Guide(name, values[name], 0.0, max(ends)) for name, curve in curves.items() if curve and name in values]


def _samples(paths: Sequence[Path]) -> str:
    figures = [
        f'<figure><img alt="samples after step {step}" src="{data}"><figcaption><small>step {step}</small></figcaption>'
        "</figure>"
        for path in evenly_spaced(paths, _PICTURES)
        if (data := as_data(path)) is not None and (step := step_label(path))
    ]
    return f'<div class="samples">{"".join(figures)}</div>' if figures else ""


def step_label(path: Path) -> str:
    """Return the step in a file or folder name such as "step-00001000" as text, with thousands separators: "1,000"."""
    step = path.stem.rpartition("-")[2]
    return f"{int(step):,}" if step.isdecimal() else escape(path.stem)


def _facts(config: Config, facts: ModelFacts) -> list[tuple[str, str]]:
    height, width = facts.resolution
    num = f"{facts.num_images:,} of " if facts.num_images else ""
    channels = "channel" if facts.image_channels == 1 else "channels"
    rows = [
        ("data", config.data.source or ("given in Python" if facts.num_images else "unknown, the run was imported")),
        ("images", f"{num}{height} x {width}, {facts.image_channels} {channels}"),
        ("classes", _named(facts.class_names) or f"{facts.num_classes or 'none'}"),
        *((column.name, column.describe()) for column in facts.attributes),
        ("network", f"{config.network.kind}, {facts.parameters:,} parameters"),
        ("patches", _patches(config)),
        ("standard deviation", f"{facts.sigma_data:.4f} (sigma_data)"),
        ("batch", f"{option_text(config.batch)} whole images"),
        ("optimizer", f"{config.optimizer.kind}, learning rate {option_text(config.optimizer.learning_rate)}"),
    ]
    if config.few_steps is not None:
        rows.append(("tuned", tuned_in_words(config.few_steps, facts.parent)))
    if "low" in facts.codec:
        rows.insert(2, ("values", f"{facts.codec.get('dtype')}, {facts.codec['low']:g} to {facts.codec['high']:g}"))
    elif "kind" in facts.codec:
        rows.insert(2, ("values", str(facts.codec["kind"])))
    return rows


def _patches(config: Config) -> str:
    patches = config.patches
    sizes = ", ".join(f"{size} {(1 - patches.whole) * share:.0%}" for size, share in patches.sizes.items())
    unit = "budget" if patches.kind == "progressive" else "steps"
    return f"{patches.kind}: whole images {patches.whole:.0%} of the {unit}" + (
        f", {sizes}" if patches.whole < 1 else ""
    )


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _CLASSES:,} others" if len(names) > _CLASSES else ""
    return f"{len(names):,}: {', '.join(names[:_CLASSES])}{more}" if names else ""


def _checkpoints(folder: RunFolder) -> str:
    rows = []
    for path in folder.checkpoints():
        try:
            size = sum(file.stat().st_size for file in path.iterdir())
            kept = read_state(path).keep
        except (OSError, InputError):  # removed meanwhile, or damaged
            continue
        rows.append((f"step {step_label(path)}", f"{size / 1e6:,.1f} MB{'' if kept else ', until the next'}"))
    return table(rows) if rows else "none yet"


def _few(config: Config, history: History) -> str:
    """Return the reason why samples are still noise, if that few images were seen, as HTML."""
    seen = history.last.get("images", 0)
    if not shows_few(seen):
        return ""
    budget = next((name.replace("_", "-") for name in BUDGETS if getattr(config, name)), "steps")
    far = "" if history.complete else " so far"
    more = f" For better samples, give the same command more --{budget}: the run continues." * history.complete
    return (
        f'<p class="box warning">{seen:,} images seen{far}: samples may still be blurry or noise. Good ones take '
        f"{ENOUGH_IMAGES:,} or more (a rule of thumb, from digits of 16x16).{more}</p>"
    )


def _warnings(history: History) -> str:
    warnings = [f"step {step:,}: {note}" for step, note in history.notes if note.startswith("WARNING")]
    if history.num_damaged:
        warnings.append(f"{history.num_damaged:,} of {history.num_lines:,} lines of the log are damaged and left out")
    return "".join(f'<p class="box warning">{escape(warning)}</p>' for warning in warnings[-_PICTURES:])


def _notes(history: History) -> str:
    notes = [(f"step {step:,}", note) for step, note in history.notes]
    left_out = history.num_notes - len(notes)
    more = f'<p class="soft">{left_out:,} notes between the first and the last are left out.</p>' if left_out else ""
    return table(notes) + more if notes else "none"
