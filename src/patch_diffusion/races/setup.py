"""The setup that all arms of a race share: the images to train on and to judge by, and the trainers' options."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from patch_diffusion.config import Config, Watch
from patch_diffusion.config_dict import changed_names, with_options
from patch_diffusion.data.held_out import HELD_OUT, halved, hold_out
from patch_diffusion.data.images import Images, numbered_as
from patch_diffusion.data.sources import open_data
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.meter import SampleMeter
from patch_diffusion.interop.start import open_start
from patch_diffusion.limits import check_numbers
from patch_diffusion.presets import with_budget
from patch_diffusion.processes import started_by_launcher
from patch_diffusion.races.arms import PATCHES
from patch_diffusion.races.judging import FEWEST_JUDGES
from patch_diffusion.training.budget import Budget
from patch_diffusion.training.build import build_trainer
from patch_diffusion.training.choices.size import choose_size
from patch_diffusion.training.choices.source import with_source
from patch_diffusion.training.choices.suggest import suggest
from patch_diffusion.training.optimizing.optimizers import settled
from patch_diffusion.training.timing import measure_speed
from patch_diffusion.training.trainer import Trainer

_NEVER = 1e9  # minutes between checkpoints: a race saves between turns, where it takes no training time


class Judges(NamedTuple):
    """The held-out images that judge the arms of a race, and those by which a sweep chooses settings."""

    race: Images
    sweep: Images


@dataclass(frozen=True)
class RaceSetup:
    """The config of each arm of a race, and the images that all arms share.

    Args:
        arms: the config of each arm, by name.
        images: the images to train on, and to hold out a share of if ``apart`` is None.
        apart: separate held-out images to judge by.
        notes: for each arm, sentences on options that were changed to suit the images.
        given: for each arm, the names of the options that were given for it.
        chooses_apart: True if a sweep chooses by other held-out images than those that judge: by half of them each.
    """

    arms: Mapping[str, Config]
    images: Images
    apart: Images | None = None
    notes: Mapping[str, list[str]] = field(default_factory=dict)
    given: Mapping[str, Collection[str]] = field(default_factory=dict)
    chooses_apart: bool = False

    @classmethod
    def open(
        cls,
        arms: Mapping[str, Config],
        held_out: str | None,
        given: Mapping[str, Collection[str]] | None,
        stored: Mapping[str, Config] = MappingProxyType({}),
    ) -> RaceSetup:
        """Open the images of a race, and adapt the config of every arm to them; see `race` for the arguments.

        ``stored`` has the options of the arms of a race that continues.
        """
        given = {name: changed_names(arm) for name, arm in arms.items()} if given is None else given
        arms = {
            name: with_options(stored[name], arm, {"data.source", *given.get(name, ())}) if name in stored else arm
            for name, arm in arms.items()
        }
        arms = {name: with_budget(arm) for name, arm in arms.items()}
        config = next(iter(arms.values()))
        for each in arms.values():
            check_numbers(each)
            budget_of(each)
        if config.engine.processes not in (None, 1) or started_by_launcher():
            raise InputError("a race takes one process: leave out engine.processes, and start it without torchrun")
        share = config.data.held_out
        if share is None:
            share = HELD_OUT if held_out is None else 0.0
            arms = {name: replace(arm, data=replace(arm.data, held_out=share)) for name, arm in arms.items()}
        if held_out is None and not share:
            raise InputError("a race needs images that are held out: give data.held_out, for example 0.05")
        if held_out is not None and share:
            raise InputError(f"held-out images come from {held_out}: leave out the share data.held_out {share:g}")
        images = open_data(config.data, show=True)
        apart = None if held_out is None else open_data(replace(config.data, source=held_out), show=True)
        if apart is not None:
            apart = numbered_as(apart, images.class_names, images.num_classes) or apart
            _check_alike(apart, images)
        if set(arms) <= stored.keys():
            return cls(arms, images, apart, given=given)
        arms, given = _with_source(images, arms, given)
        chosen, notes = _sized(images, arms, given)
        for name in arms:
            asked = given.get(name, ())
            chosen[name], more = suggest(images, chosen[name], asked)
            notes[name] = [*notes.get(name, []), *more]
            if "batch" in asked:
                chosen[name] = replace(chosen[name], batch_pixels=None)
        return cls(chosen, images, apart, notes, given)

    @property
    def unit(self) -> str:
        """The unit of the training budgets of all arms: minutes, steps or images."""
        return budget_of(next(iter(self.arms.values()))).unit

    @property
    def extent(self) -> float:
        """The largest training budget of an arm, in minutes, steps or images."""
        return max(getattr(config, self.unit) for config in self.arms.values())

    def messages(self) -> list[str]:
        """Return sentences for the user on the images, and on options that were changed to suit them."""
        return [*self.images.notes, *(f"{name}: {note}" for name, notes in self.notes.items() for note in notes)]

    def can_choose_apart(self, seed: int) -> bool:
        """Return True if there are enough held-out images for the sweep to have some that do not judge."""
        judges, share = self.apart, next(iter(self.arms.values())).data.held_out
        if judges is None:
            judges = hold_out(self.images, share or 0.0, seed)[1]
        assert judges is not None  # `open` raises an error without held-out images
        one, other = halved(judges)
        return one is not other and min(len(one), len(other)) >= FEWEST_JUDGES

    def meter(self, samples: int) -> SampleMeter:
        """Return the `SampleMeter` that measures so many samples of all arms, by the options ``watch``."""
        config = next(iter(self.arms.values()))
        return SampleMeter(config.watch, samples=samples, seed=config.seed)

    def trainer(self, config: Config, seed: int, out: Path) -> tuple[Trainer, Judges]:
        """Return a trainer of one arm, which neither samples nor judges itself, and held-out images to judge it by."""
        quiet = replace(
            config,
            seed=seed,
            samples=0,
            checkpoints=1,
            checkpoint_minutes=_NEVER,
            checkpoint_steps=None,
            checkpoint_best=False,
            checkpoint_by="loss",
            watch=Watch(),
            track=(),
        )
        trainer = build_trainer(quiet, self.images, out, show=False)
        # With held-out images, the trainer would judge itself during its training time.
        judges, trainer.held_out = self.apart or trainer.held_out, None
        assert judges is not None  # `open` raises an error without held-out images
        return trainer, Judges(*halved(judges)) if self.chooses_apart else Judges(judges, judges)


def _with_source(
    images: Images, arms: Mapping[str, Config], given: Mapping[str, Collection[str]]
) -> tuple[dict[str, Config], dict[str, Collection[str]]]:
    """Give arms that train on from a model its network, and all arms its noise, by which their losses are compared."""
    starts = {arm.start for arm in arms.values() if arm.start is not None}
    if len(starts) > 1:
        raise InputError(
            f"arms train on from {' and '.join(sorted(starts))}: in a race all have one model to start from"
        )
    if not starts:
        return dict(arms), dict(given)
    model, found, kept = open_start(*starts).model, dict[str, Config](), dict[str, Collection[str]]()
    for name, arm in arms.items():
        own = set(given.get(name, ()))
        found[name], kept[name] = with_source(arm, own, model, images.channels)
        if arm.start is None:  # it chooses its network as the others do
            found[name] = replace(found[name], network=arm.network)
            kept[name] = {each for each in kept[name] if each in own or not each.startswith("network.")}
    return found, kept


def _sized(
    images: Images, arms: Mapping[str, Config], given: Mapping[str, Collection[str]]
) -> tuple[dict[str, Config], dict[str, list[str]]]:
    """Give all arms that have none the network and batch that training on patches chooses; return them, and why."""
    name = PATCHES if PATCHES in arms else next(iter(arms))
    usual, reasons = choose_size(images, arms[name], given.get(name, ()), lambda config: measure_speed(images, config))
    found = {}
    for each, arm in arms.items():
        unset = {option: value for option, value in vars(usual.network).items() if getattr(arm.network, option) is None}
        network = replace(arm.network, **unset) if arm.network.kind == usual.network.kind else arm.network
        patches = (
            arm.patches
            if arm.patches.whole != arms[name].patches.whole
            else replace(arm.patches, whole=usual.patches.whole)
        )
        batch = usual.batch if arm.batch == "auto" else arm.batch
        found[each] = replace(
            arm, network=network, patches=patches, batch=batch, optimizer=settled(arm.optimizer, arm.network.kind)
        )
    return found, {name: reasons}


def budget_of(config: Config) -> Budget:
    """Return the training budget in a config (steps, images or minutes) as a `Budget`.

    Raises:
        InputError: the budget is by the wall clock, or there is none.
    """
    if config.wall_minutes is not None:
        raise InputError("a race compares equal times of training: give minutes in place of wall_minutes")
    return Budget.of(config)


def _check_alike(apart: Images, images: Images) -> None:
    """Raise InputError if held-out images differ from the training images in shape, classes or range of values."""
    for name in ("resolution", "channels", "num_classes", "class_names"):
        found, expected = getattr(apart, name), getattr(images, name)
        if found != expected:
            raise InputError(
                f"the held-out images have {name} {found}, and those to train on {expected}: they must be alike"
            )
    if apart.codec.as_dict() != images.codec.as_dict():
        raise InputError("the held-out images have another range of values than those to train on: give data.range")
