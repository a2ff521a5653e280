"""The model card, README.md: architecture, data, training, figures and intended use of an exported model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from patch_diffusion.config import Config
from patch_diffusion.config_dict import flat_options
from patch_diffusion.errors import InputError
from patch_diffusion.files import read_json
from patch_diffusion.runs.folder import ModelFacts, RunFolder, tuned_in_words
from patch_diffusion.runs.history import History, size_in_words
from patch_diffusion.runs.log import read_log
from patch_diffusion.version import __version__

Format = Literal["diffusers", "onnx", "torch"]

_CLASSES = 20  # the most class names that a card lists
_PAPER = "https://arxiv.org/abs/2304.12526"
_TUNING = "https://arxiv.org/abs/2406.14548"


@dataclass(frozen=True)
class Card:
    """The contents of a model card.

    Args:
        name: the name of the model.
        to: the format of the export.
        config, facts: the config and the facts of the model, from the run folder.
        resolution: the exported height and width.
        history: the log up to the step of the exported weights.
        figures: results of `evaluate`, by name.
        settings: the settings of the export, by name.
        notes: sentences on what was not exported.
        license: the licence as the model hub names it, "apache-2.0"; None if the user gave none.
        usage: how to use the model, in markdown.
    """

    name: str
    to: Format
    config: Config
    facts: ModelFacts
    resolution: tuple[int, int]
    history: History
    figures: Mapping[str, Any]
    settings: Mapping[str, Any]
    notes: Sequence[str]
    license: str | None
    usage: str

    def text(self) -> str:
        """Return the whole card as markdown."""
        return "\n".join([_front(self), f"# {self.name}\n", *_sections(self)])


def history_until(run: RunFolder, step: int | None) -> History:
    """Return the log of a run up to a step; None: all of it."""
    return History.of(line for line in read_log(run.log_file) if line and (step is None or line["step"] <= step))


def read_figures(path: Path) -> dict[str, Any]:
    """Return the numbers and short texts in a JSON file, such as ``evaluate --json`` writes, by dotted names."""
    found = dict(_leaves(read_json(path), ""))
    if not found:
        raise InputError(f"{path} holds no figures for the card: give what patch-diffusion evaluate --json wrote")
    return found


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, str | int | float) and not isinstance(value, bool) and len(str(value)) <= 60:
        yield name, value


def _front(card: Card) -> str:
    front: dict[str, Any] = {
        "library_name": {"diffusers": "diffusers", "onnx": "onnx", "torch": "pytorch"}[card.to],
        "tags": ["patch-diffusion", "diffusion", "image-generation", "arxiv:2304.12526"],
        "pipeline_tag": "unconditional-image-generation",
    }
    if card.license is not None:
        front = {"license": card.license, **front}
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n"


def _sections(card: Card) -> Iterator[str]:
    config, facts = card.config, card.facts
    height, width = card.resolution
    classes = f", {facts.num_classes} classes" if facts.num_classes else ""
    kind = "latents" if facts.codec.get("kind") == "latents" else "images"
    made = f"exported by patch_diffusion {__version__}"
    if facts.num_images:
        made = f"trained from scratch by\n[Patch Diffusion]({_PAPER}) with patch_diffusion {__version__}"
    yield f"A diffusion model of {kind} of {height} x {width} x {facts.image_channels}{classes}, {made}.\n"
    yield f"## Use\n\n{card.usage}"
    if card.notes:
        yield "\n".join(["Not carried:\n", *(f"- {note}" for note in card.notes), ""])
    tuned = {}
    if config.few_steps is not None:
        tuned["tuned"] = f"{_plain(tuned_in_words(config.few_steps, facts.parent))}, by [consistency tuning]({_TUNING})"
    yield _table(
        "Model",
        {
            "network": f"{config.network.kind}, {facts.parameters:,} parameters",
            "noise": f"{config.noise.process} preconditioning, sigma_data {facts.sigma_data:.4g}"
            + (f" about {' '.join(f'{mean:g}' for mean in middle)}" if (middle := config.noise.mean_data) else ""),
            **tuned,
            **card.settings,
        },
    )
    yield _table("Data", _data(card))
    yield _table("Training", _training(card)) if facts.num_images else _IMPORTED
    yield _figures(card)
    yield _USE_AND_LIMITS
    yield "## Licence\n\n" + (
        f"{card.license}, as its publisher says.\n"
        if card.license
        else "None is given. Without one nobody but its owner may use the model: publish it with `--license`.\n"
    )
    yield _METHOD


def _data(card: Card) -> dict[str, str]:
    facts = card.facts
    source = card.config.data.source
    # Only the last part of a path on the training machine means anything to others.
    shown = source if source.startswith(("hf:", "wds:")) and "/" not in source[:5] else Path(source).name
    height, width = facts.resolution
    names = [_plain(name) for name in facts.class_names[:_CLASSES]]
    rows = {"name": _plain(shown) or "given in Python", "images": f"{facts.num_images:,}"} if facts.num_images else {}
    rows["shape"] = f"{height} x {width} x {facts.image_channels}"
    kind, dtype, low, high = (facts.codec.get(name) for name in ("kind", "dtype", "low", "high"))
    rows["values"] = "latents of an autoencoder" if kind == "latents" else f"{dtype}, from {low:g} to {high:g}"
    if facts.num_classes:
        more = ", ..." if len(facts.class_names) > _CLASSES else ""
        rows["classes"] = f"{facts.num_classes}" + (f": {', '.join(names)}{more}" if names else "")
    for column in facts.attributes:
        rows[_plain(column.name)] = _plain(column.describe())
    if card.config.data.held_out:
        rows["held out"] = f"{card.config.data.held_out:.3g} of them"
    return rows


def _training(card: Card) -> dict[str, str]:
    config, measured = card.config, card.history.last
    rows: dict[str, str] = {}
    if measured:
        rows["seen"] = f"{measured['step']:,} steps, {measured['images']:,} images"
        rows["time"] = f"{measured['seconds'] / 60:,.1f} minutes"
    rows["seed"] = str(config.seed)
    usual = flat_options(Config())
    hidden = ("engine.", "checkpoint", "samples", "log_every", "track", "watchdog", "seed")
    paths = (
        "data.source",
        "data.key",
        "data.labels",
        "data.conditions",
        "data.cache",
    )  # they say nothing about what was learned
    for name, value in flat_options(config).items():
        if value != usual.get(name) and not name.startswith(hidden + paths):
            rows[name] = _plain(str(value))
    return rows


def _figures(card: Card) -> str:
    rows: dict[str, str] = {}
    newest, best = card.history.last_held_out, card.history.best_held_out
    if newest:
        rows["loss of whole held-out images"] = f"{newest['held_out']['loss']:.4g}"
    if best != newest:
        rows[f"the best before, at step {best['step']:,}"] = f"{best['held_out']['loss']:.4g}"
    rows |= {
        f"training loss, {_plain(size_in_words(size, card.facts.resolution))}": f"{loss:.4g}"
        for size, loss in card.history.newest_loss.items()
    }
    rows |= {
        _plain(name): f"{value:.6g}" if isinstance(value, float) else _plain(str(value))
        for name, value in card.figures.items()
    }
    if not rows:
        return "## Figures\n\nNone were measured.\n"
    lacking = "" if card.figures else "\nThe quality of its samples was not measured for this card.\n"
    return _table("Figures", rows) + lacking


def _table(title: str, rows: Mapping[str, Any]) -> str:
    return f"## {title}\n\n| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())


def _plain(text: str) -> str:
    """Escape text for a cell of a markdown table: one line, in which nothing is taken for markup."""
    return "".join(f"\\{sign}" if sign in "|<>[]`*_\\" else sign for sign in " ".join(text.split()))


_IMPORTED = """\
## Training

Imported, not trained here: a published network, under the licence of whoever published it.
"""

_USE_AND_LIMITS = """\
## Intended use and limits

For research, and for making images like those it learned from. It knows nothing but its data: what is rare or missing
there is rare or missing in its images, and a bias of the data is one of the model. A model of few images may repeat
some of them; compare samples with the data before publishing either, above all where they show people. It is no source
of facts: an image of a scan, a map or a measurement that it made is not one. Classes are those of its labels.
"""

_METHOD = f"""\
## Method

Trained on random patches that know where in the image they lie, and on whole images; sampled whole, in one pass.

- Z. Wang et al., Patch Diffusion: Faster and More Data-Efficient Training of Diffusion Models, NeurIPS 2023, [arXiv
  2304.12526]({_PAPER})
- T. Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, NeurIPS 2022, [arXiv
  2206.00364](https://arxiv.org/abs/2206.00364)
"""
