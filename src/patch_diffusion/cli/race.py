"""The command ``patch-diffusion race``: several trainings compared at equal training time."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, Suppress, UseAppendAction, arg

import patch_diffusion
from patch_diffusion.cli.options import Preset, given_options
from patch_diffusion.cli.parsing import parse, parse_seeds
from patch_diffusion.cli.say import say
from patch_diffusion.cli.train import _preset_and_file, settled
from patch_diffusion.cli.verb import DataName, Json, Verb
from patch_diffusion.config import Config
from patch_diffusion.config_dict import flat_options, option_names
from patch_diffusion.data.named import check_labels
from patch_diffusion.errors import InputError, did_you_mean, shown
from patch_diffusion.races.arms import PATCHES, SCRATCH, WHOLE, check_arms, whole_images
from patch_diffusion.runs.named import model_name

# A race makes no pictures, saves checkpoints at its own moments, and feeds no trackers, which would take time.
_WITHOUT_EFFECT = (
    "samples",
    "checkpoints",
    "checkpoint_minutes",
    "checkpoint_steps",
    "checkpoint_best",
    "checkpoint_by",
    "watch.times",
    "track",
)


@dataclass(frozen=True)
class _Arm:
    """The training options of one arm of a race, that is, of one of the configurations that it compares."""

    options: Annotated[Config, arg(name="")] = field(default_factory=Config)


@dataclass(frozen=True)
class Race(Verb):
    """Measure how much faster patches train than whole images.

    patch-diffusion race photos.zip --resolution 64 --minutes 20 --out races/photos

    Takes all options of train, too. If it is stopped, the same command continues.
    """

    source: Annotated[Positional[DataName], arg(metavar="DATA")] = ""
    """Images to train on: a folder, a zip, an array or another source, as for train."""
    out: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder for race.json, race.html and a run for each arm (configuration) and seed. Required."""
    arm: UseAppendAction[Annotated[tuple[tuple[str, str], ...], arg(metavar="NAME 'OPTION=VALUE ...'")]] = ()
    """Further arm (configuration) to compare, such as --arm quarter 'patches.whole=0.25 batch=32' or --arm half
    minutes=10. The option can be repeated."""
    arms: Annotated[tuple[str, ...] | None, arg(metavar="NAME ...")] = None
    """Arms to compare. Default: whole, patches and those of --arm."""
    seeds: Annotated[str, arg(metavar="0,1,2")] = "0"
    """Seeds, as in 0-2 or 0,1,2; all arms are trained with each."""
    tune: float | None = None
    """Budget of the search for the learning rate and batch size of the arm whole, in minutes (or steps, images); 0 is
    no search. Default: as much as for one run."""
    tune_all: bool = False
    """Search the settings of every arm, each with the budget of --tune. Of arms with patches the share of whole images,
    the patch sizes and the growth are searched, too, unless you gave them."""
    moments: int = 20
    """Number of evaluations of each arm, evenly spaced over the budget."""
    held_out_data: Annotated[DataName | None, arg(metavar="DATA")] = None
    """Images to evaluate on, instead of a held-out share of DATA. --held-out DATA is short for it."""
    preset: Preset = None
    config: Annotated[Path | None, arg(metavar="FILE.yaml")] = None
    """YAML file of options; they override those of the preset."""
    json: Json = None
    """Print race.json on stdout, or write it to a file."""
    options: Annotated[Config, arg(name="")] = field(default_factory=Config)
    configs: Annotated[dict[str, Config], Suppress] = field(default_factory=dict)
    given: Annotated[dict[str, frozenset[str]], Suppress] = field(default_factory=dict)

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Race:
        """Parse the arguments of ``race``, which override config file and preset, and each arm's options over them."""
        arguments = _readable(arguments)
        base = _preset_and_file(arguments)
        command = cls.parsed(arguments, cls(options=base))
        if command.out is None:
            raise InputError("race needs --out DIR, the folder for the race")
        source = command.source or base.data.source
        if not source:
            raise InputError("race needs DATA: a folder, a zip, an array, or digits")
        given = given_options(arguments, command.config) & option_names()
        _check_given(given)
        # A race needs held-out images, also if a preset holds out none.
        share = command.options.data.held_out if "data.held_out" in given else None
        options = replace(command.options, data=replace(command.options.data, source=source, held_out=share))
        options = settled(options, base, command.preset)
        configs, all_given = _all_arms(command.arm, options, given, command.preset)
        names = list(configs) if command.arms is None else list(command.arms)
        for name in names:
            if name not in configs:
                raise InputError(f"--arms: there is no arm '{name}'{did_you_mean(name, configs)}")
            if names.count(name) > 1:
                raise InputError(f"--arms names '{name}' twice")
        configs = {name: configs[name] for name in names}
        check_arms(configs)
        if command.tune_all and command.tune == 0:
            raise InputError("--tune-all tunes every arm and --tune 0 none: leave one of them out")
        if command.tune and WHOLE not in names and not command.tune_all:
            raise InputError(f"--tune is for the arm '{WHOLE}', which does not race: leave it out, or add --tune-all")
        return replace(
            command, source=source, options=options, configs=configs, given={name: all_given[name] for name in names}
        )

    def check_given(self) -> None:
        """Raise an `InputError` if an option cannot be right."""
        super().check_given()
        check_labels(self.options.data.labels, self.source)
        check_labels(next(iter(self.options.data.conditions or ()), None), self.source, "data.conditions")
        if self.options.start is not None:
            model_name(self.options.start)

    def run(self) -> dict[str, Any]:
        """Run the race (trainings compared at equal time) and print a table, unless --json prints all results."""
        from rich.console import Console

        from patch_diffusion.cli.tables import race_table

        assert self.out is not None  # parse refuses arguments without --out
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        tuned = list(self.configs) if self.tune_all else [name for name in self.configs if name == WHOLE]
        content = patch_diffusion.race(
            self.configs,
            self.out,
            seeds=parse_seeds(self.seeds),
            tuned=[] if self.tune == 0 else tuned,
            tune_budget=self.tune or None,
            held_out=self.held_out_data,
            moments=self.moments,
            given=self.given,
            tell=lambda text: console.print(shown(text, lines=True), markup=False),
        )
        if not self.prints_json:
            say(race_table(content))
        return content

    def message(self, result: dict[str, Any]) -> str:
        """Return the message that says where the HTML page with the results is."""
        assert self.out is not None
        return f"curves, tables and all settings are on the page {self.out / 'race.html'}"

    def after_interrupt(self) -> str:
        """Return the text that follows "interrupted" after Ctrl-C: whether the same command continues the race."""
        started = self.out is not None and (self.out / "race.json").exists()
        return "; the same command goes on with the race" if started else ""


def _readable(arguments: Sequence[str]) -> list[str]:
    """Rewrite arguments for the parser: --held-out DATA becomes --held-out-data DATA; hide the words after --arm."""
    words: list[str] = []
    for place, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name in ("--held-out", "--data.held-out"):
            value = value if equals else "".join(arguments[place + 1 : place + 2])
            if value and not re.match(r"[-+.\d]*\d\.?(e-?\d+)?$", value):
                word = f"--held-out-data{equals}{value if equals else ''}"
        of_an_arm = place >= 2 and arguments[place - 2] == "--arm"
        words.append(f" {word}" if of_an_arm else word)
    return words


def _check_given(given: frozenset[str]) -> None:
    if "seed" in given:
        raise InputError("a race takes --seeds, all of them at once, and no --seed")
    for name in _WITHOUT_EFFECT:
        if name in given:
            raise InputError(
                f"{name} has no effect in a race, which makes no pictures, feeds no trackers and saves at every "
                "evaluation: leave it out"
            )


def _all_arms(
    own: Sequence[tuple[str, str]], base: Config, given: frozenset[str], preset: str | None
) -> tuple[dict[str, Config], dict[str, frozenset[str]]]:
    """Return two dicts by arm (whole images, patches, the user's own): its config, and the names of given options."""
    configs = {WHOLE: whole_images(base), PATCHES: base}
    if configs[WHOLE].patches.whole == base.patches.whole:
        del configs[PATCHES]  # the options ask for whole images only, so the opponents are the user's own arms
    names = dict.fromkeys(configs, given)
    if base.start is not None:
        configs[SCRATCH], names[SCRATCH] = replace(base, start=None), given - {"start"}
    for name, text in own:
        if name in configs or name in (WHOLE, PATCHES):
            hint = "; to race without the usual one, leave it out of --arms" if name in (WHOLE, PATCHES) else ""
            raise InputError(f"--arm {name}: there is an arm of this name already, choose another{hint}")
        words = _words(name, text)
        configs[name] = _parsed(name, words, base, preset)
        names[name] = given | (given_options(words) & option_names())
        _check_given(names[name])
    return configs, names


def _parsed(name: str, words: Sequence[str], base: Config, preset: str | None) -> Config:
    try:
        return settled(parse(_Arm, "race", words, _Arm(base)).options, base, preset)
    except InputError as error:
        raise error.reworded(f"--arm {name}: {error}") from None


def _words(arm: str, text: str) -> list[str]:
    """Split the options of --arm, such as ``patches.whole=0.25 network.multipliers=1 2 4``, into command-line words."""
    words: list[str] = []
    switches = {name for name, value in flat_options(Config()).items() if isinstance(value, bool)}
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise InputError(f"--arm {arm}: '{text}' cannot be read: {str(error).lower()}") from None
    for part in parts:
        option = re.match(r"-{0,2}([a-z][\w.-]*)=(.*)$", part)
        if option is None:
            words.append(part)
            continue
        name, value = option[1], option[2]
        group, _, last = name.replace("-", "_").rpartition(".")
        if f"{group}.{last}" in switches and value.lower() in ("true", "false"):
            last = last if value.lower() == "true" else f"no-{last}"
            words.append(f"--{group}.{last}".replace("_", "-"))
            continue
        words += [f"--{name.replace('_', '-')}", *([value] if value else [])]
    return words
