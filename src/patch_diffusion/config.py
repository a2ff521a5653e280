"""The typed options of a training, as given on the command line and as stored in its run folder.

There is one frozen dataclass per group; a field, a command-line option and a JSON key have the same name. This module
imports no heavy library, so that ``--help`` is quick. Ranges are checked by the objects that use the values.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from patch_diffusion.errors import InputError, did_you_mean, finite_number, option_error
from patch_diffusion.records import Strict, check_limits, in_short, record_of

Mode = Literal["auto", "L", "RGB", "RGBA", "RGB16"]
Fit = Literal["crop", "stretch", "bucket", "multiples"]
Layout = Literal["auto", "channels_first", "channels_last"]
Cache = Literal["auto", "memory", "disk"]


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
class Augment(Strict):
    """Augmentation of whole images, before patches are cropped from them."""

    flip: float = 0.0
    """Probability of a horizontal flip without conditioning, so samples are flipped, too; 0.5 for symmetric data."""
    p: float = 0.0
    """Probability of each augmentation the network is conditioned on, so samples show none: 0.12 for small data."""
    resample: bool = True
    """Also rotate, scale and stretch; otherwise only flip, and translate by whole pixels."""
    colour: bool = False
    """Also augment the colours."""


@dataclass(frozen=True)
class Data(Strict):
    """The training images, and how they are read."""

    source: Annotated[str, tyro.conf.Suppress] = ""
    """The data set that the images are read from, see `open_images`; DATA on the command line."""
    resolution: Annotated[int | tuple[int, int] | None, tyro.conf.arg(aliases=["--resolution"])] = None
    """Side, or height and width, that images are resized to. None: their own size, the same for all."""
    classes: bool | None = None
    """Train on classes: labels of the data, or names of sub-folders. None: on labels of the data, if it has any."""
    mode: Mode = "auto"
    """Channels to convert files to. auto: L if all files are grey, RGBA if all have transparency, else RGB. RGB16: TIFF
    in colour of 16 bits as it is."""
    fit: Fit = "crop"
    """How images are fitted: crop to the shape, stretch, or bucket: crop to the nearest of several of equal area, the
    resolution itself among them. multiples: as bucket, in multiples of 16 only, as before; stopped runs go on so."""
    range: tuple[float, float] | None = None
    """Pixel values that become -1 and 1. None: the full range of integer types, or the range found in floats."""
    labels: str | None = None
    """Source of the class labels: a CSV of file,label for image files, or the name of an array or a column."""
    group: str | None = None
    """Groups of images that are held out together. folder: the images of a folder. A pattern with parentheses, such as
    'patient-([0-9]+)': images in whose names it captures the same text. Else a column: images with the same value."""
    key: str | None = None
    """Source of the images: the name of an array in a file or of a column, or the extension of images in shards."""
    layout: Layout = "auto"
    """Position of the channel axis in arrays. auto: found from the shape."""
    cache: Cache = "auto"
    """Where to keep decoded images: in memory, or on disk, memory-mapped. auto: on disk if there are many."""
    held_out: Annotated[float | None, tyro.conf.arg(aliases=["--held-out"])] = None
    """Share of the images to hold out, at least 64, for the held-out loss in the log. None: 0.05, or 0 for fewer than
    640 images; a continued run keeps its own."""
    augment: Augment = Augment()


@dataclass(frozen=True)
class Patches(Strict):
    """The schedule of patch sizes to train on: whole images and random patches of them."""

    whole: float = 0.5
    """Probability p that a step trains on whole images."""
    sizes: Annotated[dict[str, float], _SHARES] = field(default_factory=lambda: {"1/2": 3 / 5, "1/4": 2 / 5})
    """Patch sizes, with shares of the other steps: fraction of the image (1/2) or pixels of the shorter side (32)."""
    kind: Literal["stochastic", "progressive"] = "stochastic"
    """stochastic: draw a size per step. progressive: from small to large, each size for its share of the budget (which
    is another share of the steps if the budget is in images or minutes)."""
    growth: Literal["linear", "area", "none"] = "linear"
    """Growth of the batch for patches of side s of images of side R: by R/s, (R/s)^2 (equal pixels), or none."""
    weight: Literal["patch", "area"] = "patch"
    """Weight of a patch in the loss. patch: mean over its pixels. area: sum, as in the published implementation."""
    coords: bool = True
    """Give the network the coordinates of its pixels as input."""
    context: int | None = None
    """Shorter side of a small copy of the whole image, which is an input with every patch, and sampled first. With it,
    whole 0 makes coherent images, at a cost that does not depend on their size. None: no small copy."""


@dataclass(frozen=True)
class Noise(Strict):
    """The noise process, the noise levels of training, and the range of noise levels in sampling."""

    p_mean: float | None = None
    """Mean of ln(sigma) in training. None, with p_std: the process' own distribution; for edm it is -1.2."""
    p_std: float | None = None
    """Standard deviation of ln(sigma) in training; for edm the default is 1.2."""
    process: Literal["edm", "ve", "vp"] = "edm"
    """Noise process and preconditioning: EDM, variance exploding, or variance preserving."""
    weight: Literal["process", "learned"] = "process"
    """Weight of the loss at each noise level. process: as published. learned: equal for all levels, by dividing losses
    by a running mean at their noise level and patch size."""
    sigma_data: float | None = None
    """Standard deviation of the images in [-1, 1], about mean_data if that is given. None: measured on the data."""
    sigma_min: float | None = None
    """Lowest noise level in sampling. None: the process' own; for edm it is 0.002."""
    sigma_max: float | None = None
    """Highest noise level in sampling. None: the process' own; for edm it is 80."""
    mean_data: tuple[float, ...] | None = None
    """Mean of each channel of the images in [-1, 1], or one for all: the network sees how they differ from it, and
    sampling starts from it. None: 0."""
    levels: tuple[float, ...] | None = None
    """Noise levels at which losses are measured, and a learned weight is kept, rising. None: 0.05 to 6.4."""


@dataclass(frozen=True)
class Network(Strict):
    """The architecture of the network."""

    kind: Literal["ddpmpp", "ncsnpp", "adm", "dit", "custom"] = "ddpmpp"
    """Architecture. ddpmpp, ncsnpp, adm: published U-Nets. dit: a transformer. custom: your own, only in Python."""
    width: int | None = None
    """Number of channels at full resolution; for a dit, the width of all tokens."""
    dropout: float | None = None
    """Probability of dropout."""
    label_dropout: float | None = None
    """Probability of dropping a class label in training; without it, sampling cannot use guidance."""
    multipliers: tuple[int, ...] | None = None
    """U-Nets: channels of each level as multiples of the width; each level after the first halves height and width."""
    blocks: int | None = None
    """U-Nets: number of residual blocks per level."""
    attention: tuple[int, ...] | None = None
    """U-Nets: levels with self-attention, 0 being full resolution. None: the level above the lowest."""
    depth: int | None = None
    """dit: number of layers."""
    heads: int | None = None
    """dit: number of attention heads."""
    token: int | None = None
    """dit: side of a token (patch embedding) in pixels."""


@dataclass(frozen=True)
class Optimizer(Strict):
    """The optimizer and its learning rate schedule."""

    kind: Literal["adamw", "muon", "schedule_free"] = "adamw"
    """muon: for convolutions and matrices, with AdamW for the rest; learns more per image. schedule_free: AdamW with a
    weight average of its own in place of decay and ema; needs the extra schedule-free."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of AdamW's moments; the first is also Muon's momentum, and schedule_free's interpolation weight."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip: float | None = None
    """Largest gradient norm; larger gradients are scaled down to it. None: no clipping."""
    warmup: float = 0.02
    """Fraction of the budget over which the learning rate rises from zero; a run of one step has no such rise."""
    decay: Literal["cosine", "linear", "constant"] | None = None
    """Shape of the learning rate's decay to zero from the end of warm-up to the end of the budget; constant: no decay.
    None: cosine for adamw, linear for muon, and constant for schedule_free, which allows no other."""


@dataclass(frozen=True)
class Ema(Strict):
    """The exponential moving average (EMA) of the weights, which samples are made with."""

    half_life_images: float = 500_000
    """Half-life of a weight's share in the average, in images."""
    ramp: float = 0.05
    """Upper limit of the half-life as a fraction of the images seen so far, so that short runs average well, too."""
    lengths: tuple[float, ...] = ()
    """Lengths of power-function averages to keep in checkpoints, such as 0.05 0.1; any other length can be made from
    them afterwards, more exactly with more checkpoints: ten are enough."""


@dataclass(frozen=True)
class Engine(Strict):
    """The hardware that training uses: device, processes, precision and memory."""

    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps. auto: a GPU if there is one."""
    threads: int | None = None
    """CPU threads of each process, which split its share of a batch. None: torch's default, one per core."""
    processes: int | None = None
    """Processes on this machine that split each batch, one per GPU. None: one, or the number torchrun sets."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """dtype of the network's computations; weights stay fp32. auto: bf16 on GPUs that support it; fp32 on CPUs, where
    train uses bf16 for images of 64 pixels or more if the processor supports it."""
    compile: bool = False
    """Compile the network, once per patch size; this takes minutes at the start."""
    accumulation: int | Literal["auto"] = 1
    """Microbatches that each process splits its share of a batch into, to save memory. auto: the fewest that fit."""
    shard: bool = False
    """Shard weights, gradients, moments and averages over the processes (FSDP2), for models that do not fit on one."""


@dataclass(frozen=True)
class Watch(Strict):
    """Metrics of samples, measured during training against the training images."""

    metrics: tuple[Literal["frechet", "kernel", "memorization"], ...] = ()
    """Metrics, as in evaluate: feature distances, and near copies of training images compared to held-out ones."""
    times: int = 5
    """Number of measurements, evenly over the budget; they take time, but no minutes of the budget."""
    samples: int = 500
    """Number of samples in each measurement, always of the same seeds."""
    extractor: str = "random"
    """Feature extractor: random, inception, dinov2, or a file, see evaluate."""


@dataclass(frozen=True)
class Config(Strict):
    """All options of a training: data, patches, network, optimizer, budget and so on.

    There are nested groups of options, a budget (``steps``, ``images``, ``minutes`` or ``wall_minutes``), and options
    for checkpoints and logs. `train` takes a config, ``config.json`` in a run folder holds one, and the command line's
    options have the same names. Values are checked where they are used, with an `InputError`. See also `PRESETS`.

    >>> Config(batch=16, steps=100).patches.whole
    0.5
    """

    data: Data = Data()
    patches: Patches = field(default_factory=Patches)
    noise: Noise = Noise()
    network: Network = Network()
    optimizer: Optimizer = Optimizer()
    ema: Ema = Ema()
    engine: Engine = Engine()
    watch: Watch = Watch()

    batch: int | Literal["auto"] = 64
    """Batch size in whole images; steps on small patches take more, see patches.growth. auto: the preset's batch, in as
    many microbatches as memory requires."""
    batch_pixels: int | None = None
    """Most pixels in a step: larger images reduce a preset's batch and its share of whole-image steps; no effect if
    batch is given. None: no limit."""
    seed: int = 0
    """Seed of all random numbers."""
    steps: int | None = None
    """Budget in optimizer steps."""
    images: int | None = None
    """Budget in images drawn from the data."""
    minutes: float | None = None
    """Budget in minutes of training, summed over all continuations. Evaluation comes on top, at most 5 % of them."""
    wall_minutes: float | None = None
    """Budget in minutes by the wall clock, in which all is done, evaluation and the last checkpoint too; summed over
    all continuations."""
    checkpoints: int = 10
    """Number of checkpoints to keep, evenly over the budget."""
    checkpoint_minutes: float = 10.0
    """Save at least this often, in minutes; a checkpoint between two kept ones is replaced by the next."""
    checkpoint_steps: int | None = None
    """Also save and keep a checkpoint every so many steps."""
    checkpoint_last: int = 1
    """Number of newest checkpoints that are kept in any case."""
    checkpoint_best: bool = False
    """Keep only the best of the checkpoints, and the newest."""
    checkpoint_by: Literal["loss", "frechet", "kernel"] = "loss"
    """Criterion of the best checkpoint: lowest held-out loss, or lowest in one of watch.metrics, with a checkpoint at
    each measurement."""
    watchdog: Literal["restore", "stop", "off"] = "restore"
    """Reaction when training goes wrong. restore: go back to the last good checkpoint, once, at half learning rate;
    the next time, stop and say why. stop: stop at once and say why. off: only warn."""
    samples: int = 10
    """Number of times to save pictures of samples, evenly over the budget."""
    log_every: int = 20
    """Number of steps per line of log.jsonl."""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] | None = None
    """Experiment trackers to log to. None: tensorboard, if it is installed. Without a name: no tracker."""


BUDGETS = ("steps", "images", "minutes", "wall_minutes")
"""The names of the options that set the training budget; only one of them counts."""

LARGEST = 2**63 - 1
"""The largest whole number of an option: that of 64 bits."""

LARGEST_FLOAT = 10**12
"""The largest of the other numbers, whose squares and differences are still numbers in single precision."""

MOST_LEVELS = 12
"""The most levels of a U-Net, of which each but the first halves height and width."""

LIMITS: dict[str, tuple[int, int]] = {
    "data.resolution": (1, 65_536),
    "patches.context": (1, 65_536),
    "network.width": (1, 16_384),
    "network.multipliers": (1, 64),
    "network.blocks": (1, 64),
    "network.depth": (1, 512),
    "network.heads": (1, 1024),
    "network.token": (1, 1024),
    "noise.sigma_data": (0, 1_000_000_000),
    "noise.levels": (0, LARGEST_FLOAT),
    "ema.lengths": (0, 1),
    "engine.threads": (1, 4096),
    "engine.processes": (1, 1024),
    "engine.accumulation": (1, 100_000),
    "watch.samples": (1, 10_000_000),
    "batch": (1, 100_000),
    "minutes": (0, 10_000_000),
    "wall_minutes": (0, 10_000_000),
    "checkpoints": (1, 1_000_000),
    "checkpoint_steps": (1, LARGEST),
    "checkpoint_last": (1, LARGEST),
    "samples": (0, 1_000_000),
    "log_every": (1, LARGEST),
}
"""The least and the most of numbers of options, so that none, a mistake or a stranger's, becomes a size without end."""

# Options that may differ when a training is continued, as they do not affect its finished part.
MAY_CHANGE = {
    "data.cache",
    "engine",
    *BUDGETS,
    "batch_pixels",
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


# Old values of options, which configs of the previous version may have, and the values that replace them.
OLD_VALUES = {"patches.kind": {"fixed": "stochastic"}}


def plain(config: Config) -> Config:
    """Return the config with each group as its plain dataclass, also if one is a subclass such as `PatchSchedule`.

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
    """Make a config from nested options, such as from JSON or YAML, which override the options of ``base``.

    Args:
        options: nested dicts with the field names of `Config`; for an unknown name, the error names the nearest one.
        base: the config that supplies the options that are not given; None takes the defaults.
        where: the name of the source of the options in errors.
    """
    merged = _merge(to_dict(base or Config()), options, where, ())
    for option, renamed in OLD_VALUES.items():
        group, name = option.split(".")
        for old, new in renamed.items():
            if merged[group][name] == old:
                merged[group][name] = new
    try:
        return record_of(Config, merged, where)
    except InputError as error:  # about an option, not its part
        error.option = next(
            (each for each in option_names() if f"{error.option}.".startswith(f"{each}.")), error.option
        )
        raise


def check_numbers(config: Config, where: str = "") -> None:
    """Raise InputError if a number of a config is not finite, or beyond its `LIMITS`; ``where`` begins the error."""
    options = flat_options(config)
    for name, value in options.items():
        for number in value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]:
            most = LARGEST
            if isinstance(number, float):
                finite_number(name, number)
                most = LARGEST_FLOAT
            check_limits({name: number}, {name: (-most, most)}, where)
    check_limits(options, LIMITS, where)
    if len(config.network.multipliers or ()) > MOST_LEVELS:
        raise option_error("network.multipliers", f"has at most {MOST_LEVELS} levels")
    for name in ("noise.mean_data", "noise.levels"):
        if options[name] == []:
            raise option_error(name, "names no number: give some, or leave it out")
    if not config.checkpoint_minutes > 0:
        raise option_error("checkpoint_minutes", f"is above 0, not {config.checkpoint_minutes}")


def read_yaml(path: str | Path, base: Config | None = None) -> Config:
    """Make a config from a YAML file of options, see `yaml_options`, which override those of ``base``."""
    return from_dict(yaml_options(path), base=base, where=str(path))


def yaml_options(path: str | Path) -> dict[str, Any]:
    """Read the nested options of a YAML file.

    Raises:
        InputError: it is no such file. It is small and flat, and no part of it stands for another (an alias), since a
            few lines of aliases can mean more than any memory holds.
    """
    import yaml

    try:
        content = Path(path).read_bytes()[: _MOST_YAML + 1]
        if len(content) > _MOST_YAML:
            raise InputError(f"{path} has more than {_MOST_YAML:,} bytes: a config is a short text of options")
        depth = 0
        for event in yaml.parse(content.decode("utf-8"), yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            wrong = {
                "is nested too deeply": depth > _DEEPEST_YAML,
                "has an alias (*name), and options are written out": isinstance(event, yaml.AliasEvent),
                "has a tag (!name), and options are plain values": getattr(event, "tag", None) is not None,
            }
            for why in (why for why, is_so in wrong.items() if is_so):
                raise InputError(f"{path} is no config: line {event.start_mark.line + 1} {why}")
        options = yaml.safe_load(content.decode("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the config file {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}") from None
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise InputError(f"{path} must hold options by name, such as 'batch: 64', but holds a {type(options).__name__}")
    return options


_MOST_YAML, _DEEPEST_YAML = 50_000, 10


def flat_options(config: Config) -> dict[str, Any]:
    """Return a dict of all options by full name, such as "optimizer.learning_rate"; those without a group come last."""
    return flat(to_dict(config))


def option_names() -> frozenset[str]:
    """Return the full names of all options, such as "optimizer.learning_rate"."""
    return frozenset(flat_options(Config()))


def changed_options(before: Config, after: Config) -> list[str]:
    """Return the names of the options that differ, except those that may change when a training is continued."""
    old, new = flat_options(before), flat_options(after)
    may_change = {name for name in old for allowed in MAY_CHANGE if name == allowed or name.startswith(f"{allowed}.")}
    return sorted(name for name in old.keys() - may_change if old[name] != new[name])


def differences(configs: Mapping[str, Config]) -> dict[str, dict[str, Any]]:
    """Return the options in which named configs differ: for each option, a dict of its values by the configs' names."""
    options = {name: flat_options(config) for name, config in configs.items()}
    first, *others = options.values()
    differing = [option for option in first if any(other[option] != first[option] for other in others)]
    return {option: {name: found[option] for name, found in options.items()} for option in differing}


def _merge(base: dict[str, Any], options: dict[str, Any], where: str, path: tuple[str, ...]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in options.items():
        name = ".".join((*path, str(key)))
        if key not in base:
            raise InputError(f"{where}: there is no option '{name}'{did_you_mean(str(key), base)}", option=name)
        is_group = isinstance(base[key], dict) and name != "patches.sizes"
        if is_group and not isinstance(value, dict):
            raise InputError(f"{where}: {name} is a group of options, not {in_short(value)}", option=name)
        merged[key] = _merge(base[key], value, where, (*path, str(key))) if is_group else value
    return merged


def flat(options: dict[str, Any], group: str = "") -> dict[str, Any]:
    """Return nested options as one dict by full name ("group.option"); those without a group come last."""
    groups = {name: value for name, value in options.items() if isinstance(value, dict) and name != "sizes"}
    found = {name: value for key in groups for name, value in flat(groups[key], f"{group}{key}.").items()}
    return {**found, **{group + name: value for name, value in options.items() if name not in groups}}
