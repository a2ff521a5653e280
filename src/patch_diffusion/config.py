"""Every option of a run, typed: what is asked for on the command line, what is stored with the run.

One frozen dataclass per group; a field, a command-line option and a JSON key are the same word. This file imports no
heavy library, so that ``--help`` is quick. Ranges are checked by the objects that use the values.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from patch_diffusion.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Mode = Literal["auto", "L", "RGB", "RGBA"]
Fit = Literal["crop", "stretch", "bucket"]
Layout = Literal["auto", "channels_first", "channels_last"]
Cache = Literal["auto", "memory", "disk"]

_STRICT = {"extra": "forbid"}


def _parse_shares(words: list[str]) -> dict[str, float]:
    pairs = [word.partition("=") for word in words]
    if any(not equals for _, equals, _ in pairs):
        raise ValueError(f"give each size its share, as in 1/2=0.6 1/4=0.4, not {' '.join(words)}")
    return {size: float(share) for size, _, share in pairs}


# On the command line: --patches.sizes 1/2=0.6 1/4=0.4
_SHARES = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",
    metavar="SIZE=SHARE ...",
    instance_from_str=_parse_shares,
    is_instance=lambda instance: isinstance(instance, dict),
    str_from_instance=lambda shares: [f"{size}={share:g}" for size, share in shares.items()],
)


@dataclass(frozen=True)
class Augment:
    """Whole images are altered before patches are cut from them."""

    __pydantic_config__ = _STRICT

    flip: float = 0.0
    """Probability of a horizontal flip that the network is not told of; 0.5 where left and right are of one kind."""
    p: float = 0.0
    """Probability of each alteration that the network is told of, so that samples show none: 0.12 for small data."""
    resample: bool = True
    """Also turn, scale and stretch; otherwise flips and whole-pixel translations are all."""
    colour: bool = False
    """Also alter the colours."""


@dataclass(frozen=True)
class Data:
    """The images."""

    __pydantic_config__ = _STRICT

    source: Annotated[str, tyro.conf.Suppress] = ""
    """What the images are read from, see `open_images`; DATA on the command line."""
    resolution: Annotated[int | tuple[int, int] | None, tyro.conf.arg(aliases=["--resolution"])] = None
    """Side, or height and width, to which images are brought. None: as they are, all the same."""
    classes: bool | None = None
    """Train on classes, those of the data or the names of sub-folders. None: those of the data, where it has any."""
    mode: Mode = "auto"
    """Channels to convert files to. auto: L where all files are grey, RGBA where all are transparent, else RGB."""
    fit: Fit = "crop"
    """How: crop to the shape, stretch to it, or bucket: each image to the nearest of several of as many pixels."""
    range: tuple[float, float] | None = None
    """The values that become -1 and 1. None: all that whole numbers can be, or, of floats, what is found."""
    labels: str | None = None
    """Where the classes are: a CSV of file,label for image files; the name of an array or a column for others."""
    key: str | None = None
    """Where the images are: the name of an array in a file, of a column, or the ending of images in shards."""
    layout: Layout = "auto"
    """Where the channels of arrays are. auto: as their shape tells."""
    cache: Cache = "auto"
    """Where decoded images are kept: in memory, on disk, mapped, or, for auto, on disk where they are many."""
    held_out: Annotated[float | None, tyro.conf.arg(aliases=["--held-out"])] = None
    """Share of the images that is not trained on, 64 at the least: the log says how well those are denoised. None:
    0.05, or of fewer than 640 images 0; a run that continues keeps its own."""
    augment: Augment = Augment()


@dataclass(frozen=True)
class Patches:
    """What the network is trained on: whole images and patches of them."""

    __pydantic_config__ = _STRICT

    whole: float = 0.5
    """Probability p of a step on whole images."""
    sizes: Annotated[dict[str, float], _SHARES] = field(default_factory=lambda: {"1/2": 3 / 5, "1/4": 2 / 5})
    """Other sizes and their shares of the rest: fractions of the image (1/2) or pixels of its shorter side (32)."""
    kind: Literal["stochastic", "progressive"] = "stochastic"
    """stochastic: a size is drawn per step. progressive: from small to large as the budget is spent."""
    growth: Literal["linear", "area", "none"] = "linear"
    """How the batch grows for a patch s of an image R: R/s, (R/s)^2 (equal pixels), or not."""
    weight: Literal["patch", "area"] = "patch"
    """Weight of a patch in the loss. patch: mean over its pixels. area: sum, as in the published implementation."""
    coords: bool = True
    """Give the network the coordinates of its pixels."""
    context: int | None = None
    """Shorter side of a small copy of the whole image that the network is given with every patch, and makes first when
    it samples: so that whole 0 makes images of one piece, at a cost that does not depend on their size. None: none."""


@dataclass(frozen=True)
class Noise:
    """Noise levels of training, and the range of sampling."""

    __pydantic_config__ = _STRICT

    p_mean: float | None = None
    """Mean of ln(sigma) in training. None, with p_std: the process' own distribution; edm's is -1.2."""
    p_std: float | None = None
    """Standard deviation of ln(sigma) in training; edm's is 1.2."""
    process: Literal["edm", "ve", "vp"] = "edm"
    """How noise is added and the network preconditioned: as EDM, variance exploding, or variance preserving."""
    weight: Literal["process", "learned"] = "process"
    """What a loss counts by its noise level. process: as published. learned: every level counts alike, since losses are
    divided by what those of that level and patch size have been of late."""
    sigma_data: float | None = None
    """Standard deviation of the images in [-1, 1]. None: measured from the data."""
    sigma_min: float | None = None
    """Lowest noise level of sampling. None: the process' own; edm's is 0.002."""
    sigma_max: float | None = None
    """Highest noise level of sampling. None: the process' own; edm's is 80."""


@dataclass(frozen=True)
class Network:
    """The network."""

    __pydantic_config__ = _STRICT

    kind: Literal["ddpmpp", "ncsnpp", "adm", "dit", "custom"] = "ddpmpp"
    """Published U-Nets: ddpmpp, ncsnpp, adm. dit: a transformer. custom: your own module, from Python only."""
    width: int | None = None
    """Channels at full resolution; of all tokens in a dit."""
    dropout: float | None = None
    """Probability of dropout."""
    label_dropout: float | None = None
    """Probability of hiding a class label in training; without it there is no guidance in sampling."""
    multipliers: tuple[int, ...] | None = None
    """U-Nets: channels of each level as multiples of the width; each level after the first halves height and width."""
    blocks: int | None = None
    """U-Nets: residual blocks per level."""
    attention: tuple[int, ...] | None = None
    """U-Nets: levels with self-attention, 0 being full resolution. None: the level above the lowest."""
    depth: int | None = None
    """dit: layers."""
    heads: int | None = None
    """dit: attention heads."""
    token: int | None = None
    """dit: side of a token in pixels."""


@dataclass(frozen=True)
class Optimizer:
    """How the weights move."""

    __pydantic_config__ = _STRICT

    kind: Literal["adamw", "muon", "schedule_free"] = "adamw"
    """muon: for convolutions and matrices, with AdamW for the rest; learns more per image. schedule_free: AdamW whose
    own average of the weights takes the place of a decay and of ema; needs the extra schedule-free."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of AdamW's moments; the first is Muon's momentum too, and the average's share for schedule_free."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip: float | None = None
    """Largest norm of the gradients; larger ones are scaled down to it. None: as they are."""
    warmup: float = 0.02
    """Fraction of the budget over which the learning rate rises from zero."""
    decay: Literal["cosine", "linear", "constant"] | None = None
    """How the learning rate falls from the end of the warm-up to zero at the end of the budget; constant: it stays.
    None: cosine for adamw, linear for muon, and constant for schedule_free, which takes no other."""


@dataclass(frozen=True)
class Ema:
    """The running average of the weights that is sampled from."""

    __pydantic_config__ = _STRICT

    half_life_images: float = 500_000
    """Images after which a weight's share in the average has halved."""
    ramp: float = 0.05
    """Upper limit of the half-life as a fraction of the images seen so far, so that short runs average well too."""
    lengths: tuple[float, ...] = ()
    """Power-function averages to keep in checkpoints, such as 0.05 0.1, from which any length is made afterwards; the
    more checkpoints are kept, the more exactly: ten do."""


@dataclass(frozen=True)
class Engine:
    """The hardware."""

    __pydantic_config__ = _STRICT

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps. auto: a GPU where there is one."""
    threads: int | None = None
    """CPU threads of each process, which share its part of a batch. None: as torch chooses, one per core."""
    processes: int | None = None
    """Processes on this machine that share each batch, one per GPU. None: one, or as torchrun says."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the network; its weights stay fp32. auto: bf16 on GPUs that have it; fp32 on CPUs, where
    train takes bf16 for images of 64 pixels or more if the processor has it."""
    compile: bool = False
    """Compile the network, once per patch size; takes minutes at the start."""
    accumulation: int | Literal["auto"] = 1
    """Parts that a process computes its share of a batch in, one after the other, to save memory. auto: the fewest."""
    shard: bool = False
    """Share weights, gradients, moments and averages over the processes (FSDP2), for models that do not fit."""


@dataclass(frozen=True)
class Watch:
    """What is measured of samples while training goes on, beside the images it trains on."""

    __pydantic_config__ = _STRICT

    metrics: tuple[Literal["frechet", "kernel", "memorization"], ...] = ()
    """As in evaluate: distances of features, and near copies of training images beside those of held-out ones."""
    times: int = 5
    """How often, evenly over the budget; it takes time, but no minutes of the budget."""
    samples: int = 500
    """Samples each time, of the same seeds."""
    extractor: str = "random"
    """What makes features: random, inception, dinov2, or a file, see evaluate."""


@dataclass(frozen=True)
class Config:
    """Everything that determines a run.

    One group of options for each part, a budget (``steps``, ``images`` or ``minutes``), and how the run is kept. It is
    what `train` takes and what ``config.json`` in a run folder holds; the command line's options have the same names.
    Values are judged by what they are for, which raises `InputError`. `PRESETS` has some that go together.

    >>> Config(batch=16, steps=100).patches.whole
    0.5
    """

    __pydantic_config__ = _STRICT

    data: Data = Data()
    patches: Patches = field(default_factory=Patches)
    noise: Noise = Noise()
    network: Network = Network()
    optimizer: Optimizer = Optimizer()
    ema: Ema = Ema()
    engine: Engine = Engine()
    watch: Watch = Watch()

    batch: int | Literal["auto"] = 64
    """Whole images per step; steps on small patches take more, see patches.growth. auto: the preset's, in as many parts
    as the memory takes."""
    batch_pixels: int | None = None
    """Most pixels in a step: where images are larger, a preset's batch is smaller, and whole images in fewer steps; not
    where batch is given. None: as many as there are."""
    seed: int = 0
    """Everything random follows from it."""
    steps: int | None = None
    """Budget in optimizer steps."""
    images: int | None = None
    """Budget in images drawn from the data."""
    minutes: float | None = None
    """Budget in minutes of training, over all continuations."""
    checkpoints: int = 10
    """Checkpoints to keep, evenly over the budget."""
    checkpoint_minutes: float = 10.0
    """Save at least this often; what is saved between two kept checkpoints is replaced by the next."""
    checkpoint_steps: int | None = None
    """Save every so many steps, too, and keep it."""
    checkpoint_last: int = 1
    """How many of the newest stay in any case."""
    checkpoint_best: bool = False
    """Of these, keep only the best one, and the newest."""
    checkpoint_by: Literal["loss", "frechet", "kernel"] = "loss"
    """What is best: lowest in the loss of held-out images, or in one of watch.metrics, and then saved whenever that is
    measured."""
    watchdog: Literal["restore", "stop", "off"] = "restore"
    """When training goes wrong. restore: back to the last good checkpoint, once, with half the learning rate; then, or
    for stop at once, it ends and says why. off: it is only said."""
    samples: int = 10
    """Pictures of samples, evenly over the budget."""
    log_every: int = 20
    """Steps per line of log.jsonl."""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] | None = None
    """Other tools to show the run with. None: tensorboard, where it is installed. Without a name: none of them."""


# Options that may differ when a run continues: they do not change what the finished part of the run was.
MAY_CHANGE = {
    "data.cache",
    "engine",
    "steps",
    "images",
    "minutes",
    "checkpoints",
    "checkpoint_minutes",
    "checkpoint_steps",
    "checkpoint_last",
    "checkpoint_best",
    "checkpoint_by",
    "watch.metrics",
    "watch.times",
    "watchdog",
    "samples",
    "log_every",
    "track",
}


def plain(config: Config) -> Config:
    """Return the config with its groups as plain options, also where one is an object that acts by them.

    >>> type(plain(Config(patches=PatchSchedule(whole=0.25))).patches).__name__
    'Patches'
    """
    return _plain(config, Config())


def _plain(group: Any, like: Any) -> Any:
    if not dataclasses.is_dataclass(like) or isinstance(like, type):
        return group
    fields = {field.name: (getattr(group, field.name), getattr(like, field.name)) for field in dataclasses.fields(like)}
    return type(like)(**{name: _plain(*values) for name, values in fields.items()})


def to_dict(config: Config) -> dict[str, Any]:
    """Return the config as nested dicts, lists and numbers that JSON can store."""
    return json.loads(json.dumps(dataclasses.asdict(plain(config))))


def from_dict(options: dict[str, Any], *, base: Config | None = None, where: str = "the config") -> Config:
    """Nested options, as from JSON or YAML, laid over ``base``.

    Args:
        options: nested dicts with the field names of `Config`; unknown names are refused with the nearest known one.
        base: what options that are not given fall back to; the defaults where there is none.
        where: names the file in errors.
    """
    from pydantic import ValidationError

    merged = _merge(to_dict(base or Config()), options, where, ())
    try:
        return _validator().validate_python(merged)
    except ValidationError as error:
        errors = [(_name_of(found["loc"], merged), found) for found in error.errors()]
        name, first = errors[0]
        # Of an option that takes several kinds of values, each kind says what is wrong.
        reasons = dict.fromkeys(found["msg"].lower() for other, found in errors if other == name)
        raise InputError(f"{where}: {name} is {first['input']!r}: {', or '.join(reasons)}") from None


@functools.cache
def _validator() -> TypeAdapter[Config]:
    """Made once: that takes longer than what it does."""
    from pydantic import TypeAdapter

    return TypeAdapter(Config)


def _name_of(location: tuple[str | int, ...], options: Any) -> str:
    """The option that an error is about; what follows in its location are kinds of values."""
    parts = []
    for part in location:
        if isinstance(options, dict) and part in options:
            options = options[part]
        elif not isinstance(part, int):
            break
        parts.append(str(part))
    return ".".join(parts)


def read_yaml(path: str | Path, base: Config | None = None) -> Config:
    """A YAML file of options laid over ``base``."""
    import yaml

    try:
        options = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the config file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise InputError(f"{path} must hold options by name, such as 'batch: 64', but holds a {type(options).__name__}")
    return from_dict(options, base=base, where=str(path))


def flat_options(config: Config) -> dict[str, Any]:
    """All options by their full names, such as "optimizer.learning_rate"; those of no group come last."""
    return flat(to_dict(config))


def option_names() -> frozenset[str]:
    """The full names of all options."""
    return frozenset(flat_options(Config()))


def changed_options(before: Config, after: Config) -> list[str]:
    """Names of the options that differ and that a continued run may not change unless it is told to."""
    old, new = flat_options(before), flat_options(after)
    may_change = {name for name in old for allowed in MAY_CHANGE if name == allowed or name.startswith(f"{allowed}.")}
    return sorted(name for name in old.keys() - may_change if old[name] != new[name])


def differences(configs: Mapping[str, Config]) -> dict[str, dict[str, Any]]:
    """The options in which several configs differ, each with its value in every one of them."""
    options = {name: flat_options(config) for name, config in configs.items()}
    first, *others = options.values()
    differing = [option for option in first if any(other[option] != first[option] for other in others)]
    return {option: {name: found[option] for name, found in options.items()} for option in differing}


def _merge(base: dict[str, Any], options: dict[str, Any], where: str, path: tuple[str, ...]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in options.items():
        name = ".".join((*path, str(key)))
        if key not in base:
            raise InputError(f"{where}: there is no option '{name}'{did_you_mean(str(key), base)}")
        is_group = isinstance(base[key], dict) and name != "patches.sizes"
        if is_group and not isinstance(value, dict):
            raise InputError(f"{where}: {name} is a group of options, not {value!r}")
        merged[key] = _merge(base[key], value, where, (*path, str(key))) if is_group else value
    return merged


def flat(options: dict[str, Any], group: str = "") -> dict[str, Any]:
    """Nested options by their full names; those of no group come last."""
    groups = {name: value for name, value in options.items() if isinstance(value, dict) and name != "sizes"}
    found = {name: value for key in groups for name, value in flat(groups[key], f"{group}{key}.").items()}
    return {**found, **{group + name: value for name, value in options.items() if name not in groups}}
