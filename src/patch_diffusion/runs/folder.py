"""The run folder: the paths of its files, its ``config.json``, and a summary of a run as a dict."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from patch_diffusion.config import Config, Network
from patch_diffusion.config_dict import (
    BEFORE,
    changed_options,
    flat_options,
    from_dict,
    may_change,
    option_names,
    to_dict,
)
from patch_diffusion.data.attributes import Attribute
from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.digest import change_of, digest_of
from patch_diffusion.data.held_out import hold_out
from patch_diffusion.data.images import Images, numbered_as, with_codec, with_columns, with_inputs
from patch_diffusion.data.latents.codec import LatentCodec, codec_of
from patch_diffusion.data.paired import PairedInput
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError, did_you_mean
from patch_diffusion.files import read_json, user_path, write_json
from patch_diffusion.limits import LARGEST, check_numbers
from patch_diffusion.records import Strict, check_limits, record_of
from patch_diffusion.runs.floor import read_floor
from patch_diffusion.runs.history import History
from patch_diffusion.runs.lock import HOLDER_FILE, LOCK_FILE
from patch_diffusion.runs.paths import RunPaths
from patch_diffusion.runs.retention import State, best_of, state_of, step_of
from patch_diffusion.runs.time_spent import time_spent
from patch_diffusion.version import __version__

RULES = ("counted-attention", "published-stretching", "adam-for-embeddings")
"""Rules of training that came later than the first runs. A new run takes all; another goes on by those it began with.

``counted-attention``: ``flops`` has the products of attention on every device. ``published-stretching``: see
`patch_diffusion.data.augment.Augment`. ``adam-for-embeddings``: Muon leaves embeddings of classes to AdamW.
"""


@dataclass(frozen=True)
class ModelFacts(Strict):
    """Facts about a run's data and network that its options do not tell, such as image size and number of classes.

    ``resolution_is_bucket`` is True of images in buckets, unless their sizes are those of an earlier version. ``rules``
    are the names of the `RULES` that its training follows.
    """

    image_channels: int
    resolution: tuple[int, int]
    num_classes: int
    class_names: tuple[str, ...]
    num_images: int
    sigma_data: float
    parameters: int
    augment_channels: int = 0
    codec: dict[str, Any] = field(default_factory=lambda: PixelCodec().as_dict())
    resolution_is_bucket: bool = False
    held_out_below: float | None = None
    """The limit below which the draws of held-out images are, see `Part`; None: chosen by place, or none held out."""
    data_digest: dict[str, int | str] = field(default_factory=dict)
    """The digest of the images, see `digest_of`; empty in runs of earlier versions, which do not compare them."""
    rules: tuple[str, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    """Conditions that the model is told of an image, with the categories or the range of the training images."""
    inputs: tuple[PairedInput, ...] = ()
    """Paired inputs that the model is shown, with their values or categories."""
    parent: dict[str, int | str] = field(default_factory=dict)
    """The ``run`` that it was tuned from, the ``step`` and a digest of its ``weights``; empty if it is no tuned run."""
    carried: tuple[dict[str, str], ...] = ()
    """The table of what was carried from the model that the option ``start`` names: part, change and how."""

    @classmethod
    def of(cls, denoiser: Denoiser, images: Images, rules: Collection[str] = RULES) -> ModelFacts:
        """Collect the facts (resolution, classes, parameters, ...) from a denoiser and its training images."""
        part = images.buckets[0].part
        return cls(
            image_channels=images.channels,
            resolution=images.resolution,
            num_classes=denoiser.num_classes,
            class_names=images.class_names if denoiser.num_classes else (),
            num_images=len(images),
            sigma_data=denoiser.sigma_data,
            parameters=sum(parameter.numel() for parameter in denoiser.parameters()),
            augment_channels=denoiser.augment_channels,
            codec=images.codec.as_dict(),
            resolution_is_bucket=images.options.fit == "bucket",
            held_out_below=None if part is None else part.below,
            data_digest=digest_of(images),
            rules=tuple(rules),
            attributes=images.columns if denoiser.attribute_channels else (),
            inputs=images.inputs if denoiser.paired_channels else (),
            carried=tuple(map(dict, denoiser.carried)),
        )


_LIMITS = {
    "model.image_channels": (1, 10_000),
    "model.resolution": (1, 2**20),
    "model.num_classes": (0, 10_000_000),
    "model.num_images": (0, LARGEST),
    "model.sigma_data": (1e-9, 1e9),
    "model.parameters": (0, LARGEST),
    "model.augment_channels": (0, 1000),
    "model.held_out_below": (0, 1),
}


@dataclass(frozen=True)
class RunFolder(RunPaths):
    """A run folder: `config.json`, `model.safetensors`, `checkpoints/step-NNNNNNNN/`, `log.jsonl`, and `samples/`."""

    def best(self) -> Path | None:
        """Return the folder of the best checkpoint by the run's option ``checkpoint_by``; None if none was measured."""
        return best_of(self.checkpoints(), self.read_config()[0].checkpoint_by)

    def as_trained(self, images: Images) -> Images:
        """Return images with the labels that the run in this folder has for their classes, and its range of floats.

        They are returned as they are if there is no run, or if it does not know one of the classes.
        """
        if not self.is_run():
            return images
        facts = self.read_config()[1]
        if images.options.range is None and images.codec.dtype == facts.codec.get("dtype") == "float32":
            images = with_codec(images, PixelCodec(**facts.codec))
        if {column.name for column in images.columns} == {column.name for column in facts.attributes}:
            images = with_columns(images, facts.attributes)
        if len(images.inputs) == len(facts.inputs):
            images = with_inputs(images, facts.inputs)
        return numbered_as(images, facts.class_names, facts.num_classes) or images

    def rules(self) -> tuple[str, ...]:
        """Return the names of the rules that a training in this folder follows: those of its run, or all `RULES`."""
        return self.read_config()[1].rules if self.is_run() else RULES

    def check_files(self) -> None:
        """Raise InputError if the folder is a file, holds other files, or a run that has lost its config.json."""
        if self.is_run():
            return
        if advice := self.lost_config():
            raise InputError(f"{self.path} holds the checkpoints of a run, but no config.json{advice}")
        refuse_occupied(self.path, "run")

    def check(self, config: Config, facts: ModelFacts, allow: Collection[str] = ()) -> list[str]:
        """Raise InputError if the folder holds other files, or a run whose options, data or network must not differ.

        Args:
            config, facts: the options and facts of the training that is to write into this folder.
            allow: names of options that may differ from those of the run that the folder holds.

        Returns:
            A list with a text for each allowed option that differs, such as "batch: 16, now 32".
        """
        known = {*option_names(), *vars(facts)} - {"held_out_below"}
        allow = [name.replace("-", "_") for name in allow]
        for name in allow:
            if name not in known:
                raise InputError(f"there is no option '{name}' to allow{_nearest(name)}")
        facts_of(asdict(facts), str(self.config_file))  # else it would be refused when it is read again
        self.check_files()
        if not self.is_run():
            return []
        stored, stored_facts = self.read_config()
        if {"num_images", "data_digest"} & set(allow):  # the number tells of the same change
            allow = {*allow, "num_images", "data_digest"}
        gone = facts.num_images != stored_facts.num_images and "num_images" not in allow
        gone = gone and not stored_facts.data_digest
        gone = gone and config.data.held_out == stored.data.held_out
        if stored.data.source == config.data.source and gone:
            raise InputError(
                f"{self.path} holds a run on {stored_facts.num_images:,} images, but there are now "
                f"{facts.num_images:,} in {config.data.source or 'the data'}: bring the data back as it was, "
                "choose another folder, or go on with these by --allow num_images"
            )
        changed = changed_options(stored, config)
        of_data = {"held_out_below", "data_digest", "carried", *(["num_images"] if stored_facts.data_digest else [])}
        compared = {name: value for name, value in vars(facts).items() if name not in of_data}
        differ = [name for name, value in compared.items() if _differs(value, getattr(stored_facts, name))]
        if fixed := [name for name in changed + differ if name in _FIXED]:
            raise InputError(
                f"{self.path} holds a run with other values of {', '.join(fixed)}: {fixed[0]} cannot change in a run "
                "that goes on, as its checkpoints hold no weights or state for another value; continue it with its "
                "own, or choose another folder"
            )
        refused = [name for name in changed if name not in allow]
        change = change_of(stored_facts.data_digest, facts.data_digest)
        if change and "data_digest" not in allow and not any(name.startswith("data.") for name in refused):
            where = f" in {config.data.source}" if config.data.source else ""
            remains = "; what is held out remains so" if stored.data.held_out else ""
            raise InputError(
                f"the data{where} have changed since {self.path} was trained ({change}): bring them back as they were, "
                f"choose another folder, or go on with these by --allow data_digest{remains}"
            )
        if refused:
            raise InputError(
                f"{self.path} holds a run with other options ({', '.join(refused)}): continue it with its own, "
                f"choose another folder, or allow the change by --allow {' '.join(refused)}"
            )
        if refused := [name for name in differ if name not in allow]:
            raise InputError(
                f"{self.path} holds a run on other data ({', '.join(refused)} differ): choose another folder"
            )
        before, now = flat_options(stored) | vars(stored_facts), flat_options(config) | vars(facts)
        said = [f"{name}: {before[name]}, now {now[name]}" for name in changed + differ]
        if "num_images" in differ and stored.data.held_out and stored_facts.held_out_below is None:
            said.append("held-out images: chosen by place, as in earlier versions, so some were trained on before")
        return [*said, f"data: {change}"] if change else said

    def known_facts(self, facts: ModelFacts) -> ModelFacts:
        """Return facts with what only the run that is here knows: parent, table of what was carried, and no digest.

        A run of an earlier version has no digest, and goes on without one.
        """
        if not self.is_run():
            return facts
        stored = self.read_config()[1]
        digest = facts.data_digest if stored.data_digest else {}
        return replace(facts, parent=stored.parent, carried=stored.carried, data_digest=digest)

    def hold_out(self, images: Images, share: float, seed: int) -> tuple[Images, Images | None]:
        """Return images to train on, and held-out ones, by the rule of the run if there is one, else see `hold_out`."""
        if not self.is_run():
            return hold_out(images, share, seed)
        config, facts = self.read_config()
        before = config.data.held_out or 0.0
        by_place = before > 0 and facts.held_out_below is None
        below = facts.held_out_below if share == before else None
        return hold_out(images, share, seed, below=below, by_place=by_place)

    def write_config(self, config: Config, facts: ModelFacts) -> None:
        """Write the run's options and facts about its model to ``config.json``; create the folder if it is missing."""
        content = {"version": __version__, **to_dict(config), "model": asdict(facts)}
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.config_file, content)

    def read_config(self) -> tuple[Config, ModelFacts]:
        """Read the run's options and the facts about its data and network from ``config.json``."""
        self.check_is_run()
        try:
            content = read_json(self.config_file)
        except InputError as error:
            raise error.reworded(f"{error}{self.lost_config()}") from None
        content.pop("version", None)
        facts = facts_of(content.pop("model", {}), str(self.config_file))
        config = from_dict(content, base=BEFORE, where=str(self.config_file))
        if config.noise.process == "edm":  # runs of earlier versions store no number for what was usual then
            noise = config.noise
            p_mean = -1.2 if noise.p_mean is None else noise.p_mean
            config = replace(
                config, noise=replace(noise, p_mean=p_mean, p_std=1.2 if noise.p_std is None else noise.p_std)
            )
        check_numbers(config, str(self.config_file))
        if config.data.fit == "bucket" and not facts.resolution_is_bucket:  # a run of an earlier version
            config = replace(config, data=replace(config.data, fit="multiples"))
        return config, facts


def facts_of(content: Any, where: str) -> ModelFacts:
    """Return the facts of a model that a file holds as ``model``; raise an `InputError` that names one that is none."""
    facts = record_of(ModelFacts, content, where, "model")
    check_limits({f"model.{name}": value for name, value in vars(facts).items()}, _LIMITS, where)
    codec = codec_of(facts.codec, where, "model.codec")
    for wrong, told in (
        (math.prod(facts.resolution) > 2**32, "resolution has at most 2^32 pixels"),
        (len(facts.class_names) not in (0, facts.num_classes), "class_names has a name for each class, or none"),
        (
            isinstance(codec, LatentCodec) and len(codec.mean) != facts.image_channels,
            "codec has a mean for each channel of the images",
        ),
        (
            not all(map(_is_whole, facts.attributes)),
            "attributes have categories, or mean, deviation and range of as many numbers",
        ),
        (
            facts.data_digest and not isinstance(facts.data_digest.get("images"), int),
            "data_digest has the number of images",
        ),
    ):
        if wrong:
            raise InputError(f"{where}: model.{told}")
    check_limits(facts.data_digest, {"images": (0, LARGEST)}, f"{where}: model.data_digest")
    return replace(facts, codec=codec.as_dict())


def _is_whole(attribute: Attribute) -> bool:
    """Return True if an attribute has either categories, or all facts of its numbers, and no deviation of 0."""
    lengths = {len(getattr(attribute, name)) for name in ("mean", "deviation", "lowest", "highest")}
    numbers = len(lengths) == 1 and lengths != {0} and min(attribute.deviation) > 0
    return numbers != bool(attribute.categories) and (numbers or lengths == {0})


# Options and facts that decide which tensors there are: of the network, the optimizer and the averages.
_FIXED = {
    *(f"network.{name}" for name in vars(Network()) if name not in ("dropout", "label_dropout")),
    *("start", "patches.coords", "patches.context", "optimizer.kind", "ema.lengths", "noise.levels"),
    *("image_channels", "num_classes", "parameters", "augment_channels", "attributes", "inputs"),
}


def _nearest(name: str) -> str:
    """Return the end of an error sentence: the option nearest to a name, those of a group, or all that need --allow."""
    allowed = sorted(each for each in {*option_names(), "data_digest"} - _FIXED if not may_change(each))
    inside = [each for each in allowed if each.startswith(f"{name}.")]
    return f"; choose from {', '.join(inside)}" if inside else did_you_mean(name, allowed)


def tuned_in_words(few_steps: int, parent: Mapping[str, int | str]) -> str:
    """Return what a tuned run is made for and which run it was made from, as info, report and model card say it.

    >>> tuned_in_words(2, {"run": "runs/photos", "step": 1200})
    'for 2 steps of sampling, from photos at step 1,200'
    """
    # Only the last part of a path on the training machine means anything to others.
    name = Path(str(parent.get("run", ""))).name
    at = f" at step {parent['step']:,}" if "step" in parent and not name.startswith("step-") else ""
    return f"for {few_steps} step{'s' * (few_steps > 1)} of sampling" + (f", from {name}{at}" if name else "")


def step_in(source: Path) -> int | None:
    """Return the training step of the weights of a run, or of one of its checkpoints; None if it is not known."""
    if source.parent.name == "checkpoints":
        return step_of(source) if source.name[5:].isdigit() else None
    checkpoints = RunFolder(source).checkpoints()
    return step_of(checkpoints[-1]) if checkpoints else None


def refuse_occupied(path: Path, what: str) -> None:
    """Raise InputError if the folder for a new "run" or "race" is a file, or holds other files."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: give a folder for the {what}")
    # A run that was stopped before it wrote anything has left the files of its lock.
    found = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    others = sorted(found - {LOCK_FILE, HOLDER_FILE})
    if others:
        more = ", ..." if len(others) > 1 else ""
        raise InputError(f"{path} holds other files ({others[0]}{more}) and no {what}: choose a new or an empty folder")


def _differs(fact: Any, stored: Any) -> bool:
    """Return True if a stored fact has changed; an autoencoder may move or change its decoder: latents stay equal."""
    if isinstance(fact, dict) and isinstance(stored, dict):
        return any(fact.get(name) != stored.get(name) for name in (fact.keys() | stored.keys()) - {"vae", "digest"})
    return fact != stored


def describe(run: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe a run folder as a dict: its options, data and network, checkpoints, and the newest line of its log.

    Returns:
        A dict that JSON can store: ``run``, ``model``, ``options`` (those of `Config`), ``progress`` (a line of the
        log, empty before the first), ``losses`` (the newest training loss of each size), ``held_out`` (``step`` and
        ``loss`` of the newest held-out loss, ``best_step`` and ``best_loss``; empty if there is none), ``by_noise``
        (the newest held-out loss by noise level), ``linear_floor`` (that of the best linear denoiser, see
        `LinearFloor`; None in runs without held-out images, and of earlier versions), ``time`` (seconds by what they
        went into until the newest checkpoint, see `time_spent`), ``checkpoints`` (steps), ``best_checkpoint``,
        ``pictures`` (paths), ``complete``.

    Raises:
        InputError: there is no run in the folder, or it is damaged.

    >>> describe("runs/digits")["checkpoints"]
    [1]
    """
    folder = RunFolder(user_path(run))
    config, facts = folder.read_config()
    history = History.read(folder.log_file)
    progress, measured, lowest = history.last, history.last_held_out, history.best_held_out
    floor = read_floor(folder.floor_file)
    best, checkpoints = folder.best(), folder.checkpoints()
    newest = state_of(checkpoints[-1]) if checkpoints else State()
    return {
        "run": str(folder.path),
        "model": asdict(facts),
        "options": to_dict(config),
        "progress": progress,
        "losses": history.newest_loss,
        "held_out": measured
        and {
            "step": measured["step"],
            "loss": measured["held_out"]["loss"],
            "best_step": lowest["step"],
            "best_loss": lowest["held_out"]["loss"],
        },
        "by_noise": measured.get("held_out", {}).get("by_noise", {}),
        "linear_floor": None if floor is None else asdict(floor),
        "time": time_spent(newest.seen.seconds, newest.time or {}) if newest.seen else {},
        "checkpoints": [step_of(path) for path in checkpoints],
        "best_checkpoint": None if best is None else step_of(best),
        "pictures": [str(path) for path in sorted(folder.path.glob("samples/*.png"))],
        "complete": progress.get("spent", 0) >= 1,
    }
