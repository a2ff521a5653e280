"""Configs as nested dicts, which JSON and YAML files hold, and as single options by their full names."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from patch_diffusion.config import BUDGETS, Config, Noise, Optimizer
from patch_diffusion.errors import InputError, did_you_mean
from patch_diffusion.records import in_short, record_of

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


# Options whose values are dicts, and no groups.
_DICTS = ("sizes", "unet")


# Options that runs of earlier versions do not store, where the defaults were others.
BEFORE = Config(
    noise=Noise(weight="process"),
    optimizer=Optimizer(kind="adamw", learning_rate=1e-3, betas=(0.9, 0.99)),
    batch=64,
)


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


def changed_names(config: Config) -> frozenset[str]:
    """Return the names of the options that are not at their defaults."""
    return frozenset(differences({"given": config, "usual": Config()}))


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by full name as nested dicts, see `flat_options`.

    >>> nested({"network.width": 8, "steps": 1})
    {'network': {'width': 8}, 'steps': 1}
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        *groups, last = name.split(".")
        inner = found
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return found


def with_options(base: Config, config: Config, names: Collection[str]) -> Config:
    """Return a config with the named options of another one, of which a budget replaces that of the base.

    >>> with_options(Config(steps=5, batch=8), Config(minutes=2, batch=4), {"minutes"}).batch
    8
    """
    asked, own = flat_options(config), flat_options(base)
    chosen = {name for name in asked if name in names or (name in BUDGETS and not set(BUDGETS).isdisjoint(names))}
    return from_dict(nested({**own, **{name: asked[name] for name in chosen}}))


def changed_options(before: Config, after: Config) -> list[str]:
    """Return the names of the options that differ, except those that may change when a training is continued."""
    old, new = flat_options(before), flat_options(after)
    return sorted(name for name in old if not may_change(name) and old[name] != new[name])


def may_change(name: str) -> bool:
    """Return True if an option, by its full name, may change when a training is continued."""
    return any(name == allowed or name.startswith(f"{allowed}.") for allowed in MAY_CHANGE)


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
        is_group = isinstance(base[key], dict) and key not in _DICTS
        if is_group and not isinstance(value, dict):
            raise InputError(f"{where}: {name} is a group of options, not {in_short(value)}", option=name)
        merged[key] = _merge(base[key], value, where, (*path, str(key))) if is_group else value
    return merged


def flat(options: dict[str, Any], group: str = "") -> dict[str, Any]:
    """Return nested options as one dict by full name ("group.option"); those without a group come last."""
    groups = {name: value for name, value in options.items() if isinstance(value, dict) and name not in _DICTS}
    found = {name: value for key in groups for name, value in flat(groups[key], f"{group}{key}.").items()}
    return {**found, **{group + name: value for name, value in options.items() if name not in groups}}
