"""The race: several trainings at equal time, and the time that each takes to reach the final loss of another."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from os import PathLike
from statistics import fmean
from typing import Any

from patch_diffusion.config import Config
from patch_diffusion.config_dict import to_dict
from patch_diffusion.data.digest import digest_of
from patch_diffusion.data.images import Images, refuse_ids
from patch_diffusion.denoise.whole_image import SIGMAS
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.circumstances import circumstances
from patch_diffusion.evaluation.linear_floor import linear_floor
from patch_diffusion.files import user_path
from patch_diffusion.limits import LARGEST, LIMITS
from patch_diffusion.races.arms import check_arms
from patch_diffusion.races.cost import cost_of_steps
from patch_diffusion.races.judging import (
    JUDGES,
    Judging,
    judgement,
    judging,
    measuring,
    seconds_per_judge,
    seconds_per_sample,
)
from patch_diffusion.races.record import RaceFolder, Record
from patch_diffusion.races.setup import RaceSetup, budget_of
from patch_diffusion.races.summary import judges_in_words, length, trial_in_words
from patch_diffusion.races.tuning import most_trials, searched, taken, tune, with_option
from patch_diffusion.races.turns import run_turns
from patch_diffusion.records import check_limits
from patch_diffusion.runs.floor import FLOOR
from patch_diffusion.runs.lock import locked
from patch_diffusion.runs.time_spent import clock
from patch_diffusion.training.timing import measure_speed
from patch_diffusion.training.trainer import Trainer

Tell = Callable[[str], None]


def race(
    arms: Mapping[str, Config],
    out: str | PathLike[str],
    *,
    seeds: Sequence[int] = (0,),
    tuned: Collection[str] = (),
    tune_budget: float | None = None,
    held_out: str | None = None,
    moments: int = 20,
    given: Mapping[str, Collection[str]] | None = None,
    tell: Tell = lambda text: None,
) -> dict[str, Any]:
    """Train several configurations (arms), usually for equal time, to see which is better; or continue a stopped race.

    The command line's ``race`` calls this. Each arm has a run folder, ``OUT/ARM-seedS/``, and takes the steps
    that `train` would take, without the pictures and checkpoints that would take training time. Whenever the arms are
    judged, all results are written to ``race.json`` and a page of them to ``race.html``. If ``watch`` has metrics,
    samples of the arms are measured at the same time, which does not count as training time.

    Args:
        arms: the config of each arm by name, with its budget; configs differ only in how to train. The learning rate of
            an arm with a smaller budget falls within that budget.
        out: the folder of the race: new or empty, or that of a stopped race of the same arms; more seeds may be given.
        seeds: the random seeds; all arms are trained with each of them, one seed after the other.
        tuned: names of arms whose learning rate, batch and options of patches are first tuned by a sweep, see `tune`.
        tune_budget: the budget of each sweep, in the unit of the arms' budgets, minutes, steps or images; None: the
            largest budget of an arm.
        held_out: images to judge the arms by; None: the share ``data.held_out`` of the images, chosen by the seed.
        moments: how often all arms are judged, evenly over the budget of each.
        given: for each arm, the names of options that must stay as they are, see `train`; None: those that are not
            at their defaults.
        tell: a function that is called with each line of text on the progress of the race.

    Returns:
        The content of ``race.json``.

    Raises:
        InputError: the arms cannot be compared, there are no held-out images, or the folder holds something else.
        KeyboardInterrupt: after Ctrl-C, once checkpoints are written.

    >>> found = race({"whole": whole, "patches": patches}, "races/photos", tuned=["whole"])  # doctest: +SKIP
    """
    check_arms(arms)
    check_limits({"moments": moments}, {"moments": (1, 100_000)})
    if not seeds:
        raise InputError("a race takes at least one seed, and none is given")
    if tune_budget is not None and not tune_budget > 0:  # as is NaN
        raise InputError(f"the budget of tuning is above 0, not {tune_budget:g}")
    folder = RaceFolder(user_path(out))
    folder.check_files()  # before the images are read, and speeds are measured
    setup = RaceSetup.open(arms, held_out, given, folder.configs())
    tune_budget = setup.extent if tune_budget is None else tune_budget
    most = LIMITS.get(setup.unit, (0, LARGEST))[1]
    if tuned and tune_budget > most:
        raise InputError(f"the budget of tuning is at most {most:,} {setup.unit}, not {tune_budget:g}")
    plan = {
        "arms": {name: to_dict(config) for name, config in setup.arms.items()},
        "held_out": held_out,
        "moments": moments,
        "tuning": {name: tune_budget for name in arms if name in tuned},
    }
    found = folder.check(plan, seeds)
    if found is None:
        refuse_ids(setup.images)
    # Races of earlier versions were judged by the images that the sweep chose by, and go on so.
    if tuned and (setup.can_choose_apart(seeds[0]) if found is None else "chosen_by" in found["judged_by"]):
        setup = replace(setup, chooses_apart=True)
    facts, here, plan_of_judging, said = _facts(setup, seeds[0], folder, moments, found, tell)  # refuses before writing
    folder.check_data(found or {}, facts)
    judges = [judges_in_words(facts["judged_by"])] if tuned else []
    for note in [*setup.messages(), *judges, *said] if found is None else ():
        tell(note)
    folder.path.mkdir(parents=True, exist_ok=True)
    with locked(folder.path):
        record = Record(folder, found, plan, facts, tell)
        record.begin(seeds, here)
        settings = {
            name: _tuned(name, setup, record, tune_budget, tell) if name in tuned else config
            for name, config in setup.arms.items()
        }
        unfinished = [seed for seed in record.seeds if not record.is_finished(seed)]
        began, before = time.monotonic(), sum(record.moments(seed) for seed in unfinished)
        for number, seed in enumerate(unfinished):

            def after(moment: int, number: int = number, seed: int = seed) -> None:
                times = plan_of_judging.loss.moments.times
                done = number * times + moment
                each = (time.monotonic() - began) / (done - before) if done > before else 0.0
                left = each * (len(unfinished) * times - done)
                tell(_line(record.write()["points"], seed, moment / times, left))

            _run_seed(settings, seed, setup, folder, plan_of_judging, after)
        return record.write()


def _run_seed(
    settings: Mapping[str, Config],
    seed: int,
    setup: RaceSetup,
    folder: RaceFolder,
    plan: Judging,
    after: Callable[[int], None],
) -> None:
    """Train all arms of a race with one seed; the memory of their models is free afterwards."""
    built = {name: setup.trainer(config, seed, folder.arm(name, seed)) for name, config in settings.items()}
    judges = next(iter(built.values()))[1].race  # the same for all arms, because they follow from the seed
    trainers = {name: trainer for name, (trainer, _) in built.items()}
    budgets = {name: budget_of(config) for name, config in settings.items()}
    meter = None if plan.distances is None else setup.meter(plan.distances.images)
    run_turns(trainers, judges, budgets, plan, after, meter)


def _facts(
    setup: RaceSetup, seed: int, folder: RaceFolder, moments: int, found: Mapping[str, Any] | None, tell: Tell
) -> tuple[dict[str, Any], dict[str, Any], Judging, list[str]]:
    """Return what is known before a race begins: facts, hardware, the plan of judging, and what that leaves out.

    A race that continues keeps the plan that ``found``, its record, has.
    """
    built = {name: setup.trainer(config, seed, folder.tuning / "none") for name, config in setup.arms.items()}
    trainer, judges = next(iter(built.values()))
    plan, said = _planned(setup, [each for each, _ in built.values()], judges.race, moments, found)
    facts = {
        "unit": setup.unit,
        "budget": setup.extent,
        "source": next(iter(setup.arms.values())).data.source,
        "images": {"resolution": list(setup.images.resolution), "trained_on": len(trainer.images)},
        "data_digest": digest_of(setup.images),
        "judges_digest": {} if setup.apart is None else digest_of(setup.apart),
        "judged_by": {
            **plan.as_dict(),
            "sigmas": list(trainer.state.denoiser.levels or SIGMAS),
            **({"chosen_by": min(len(judges.sweep), JUDGES)} if setup.chooses_apart else {}),
        },
        "linear_floor": found.get("linear_floor")
        if found is not None
        else _floor(trainer, judges.race, plan.loss.images, tell),
        "parameters": {name: trainer.facts.parameters for name, (trainer, _) in built.items()},
        "notes": {name: reasons for name, reasons in setup.notes.items() if reasons},
    }
    return facts, circumstances(trainer.engine.device), plan, said


def _planned(
    setup: RaceSetup, trainers: Sequence[Trainer], judges: Images, moments: int, found: Mapping[str, Any] | None
) -> tuple[Judging, list[str]]:
    """Return the plan of judging, by the times of the slowest arm, and sentences on what it leaves out."""
    minutes = setup.extent if setup.unit == "minutes" and found is None else None
    seconds = 0.0 if minutes is None else max(seconds_per_judge(each, judges) for each in trainers)
    loss, said = judging(moments, len(judges), minutes, seconds)
    watch, samples = next(iter(setup.arms.values())).watch, None
    more = ""
    if watch.metrics:
        seconds = 0.0 if minutes is None else max(map(seconds_per_sample, trainers))
        samples, more = measuring(loss.moments.times, watch.samples, minutes, seconds)
    plan = Judging(loss, samples)
    return plan if found is None else plan.as_before(found["judged_by"]), [each for each in (said, more) if each]


def _floor(trainer: Trainer, judges: Images, most: int, tell: Tell) -> dict[str, Any] | None:
    """Return the loss of the best linear denoiser of the images that judge a race; tell why if it is not measured."""
    try:
        return asdict(linear_floor(trainer.images, judges, noise=trainer.config.noise, most=most))
    except InputError as error:
        tell(f"no {FLOOR} is measured: {error}")
        return None


def _tuned(name: str, setup: RaceSetup, record: Record, budget: float, tell: Tell) -> Config:
    """Return an arm's config with the best settings that are found by short trainings with the first seed."""
    seed, before, config, given = record.seeds[0], record.tuning(name), setup.arms[name], setup.given.get(name, ())
    if (options := taken(before)) is not None:
        for option, value in options.items():
            config = with_option(config, option, value)
        return config
    if not before.get("trials"):
        options = ", ".join(searched(config, given))
        tell(f"tuning {name}: {options}; {length(budget, setup.unit)} in total")
    trials, folder = list(before.get("trials", [])), record.folder.tuning
    trainer, (_, judges) = setup.trainer(config, seed, folder / "none")
    minutes = budget if setup.unit == "minutes" else None
    speed = before.get("speed") or ({} if minutes is None else _speed(setup.images, config))
    record.tuned(name, {"speed": speed, "trials": trials})
    seconds = 0.0 if minutes is None else most_trials(config, given) * seconds_per_judge(trainer, judges)
    most = judging(1, len(judges), minutes, seconds)[0].images

    def run(tried: Config, steps: int) -> tuple[float, float]:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            # A trial that diverges has merely lost, so the watchdog must not end the sweep.
            trial = setup.trainer(replace(tried, watchdog="off"), seed, folder / "trial")[0]
            trial.fit(steps=steps)
            return fmean(judgement(trial, judges, most).values()), trial.state.counters.seconds
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def told(trial: Mapping[str, Any]) -> None:
        tell(f"tuning {name}: {trial_in_words(trial, trials)}")
        trials.append(trial)
        record.tuned(name, {"speed": speed, "trials": trials})

    cost = cost_of_steps(trainer, config, speed)
    config, found = tune(config, budget, run, cost, given=given, known=tuple(trials), tell=told)
    record.tuned(name, {"speed": speed, **found})
    if found["left_out"]:
        tell(f"tuning {name}: {found['left_out']}")
    return config


def _speed(images: Images, config: Config) -> dict[str, float]:
    found = measure_speed(images, config)
    return {"overhead": found.overhead, "rate": found.rate}


def _line(points: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], seed: int, spent: float, left: float) -> str:
    """Return a progress line of a race: share of the budget spent, loss of each arm, and estimated time left."""
    losses = [f"{name} {found[str(seed)][-1]['loss']:.4f}" for name, found in points.items() if found[str(seed)]]
    return f"{spent:4.0%}  seed {seed}  {'  '.join(losses)}" + (f"  {clock(left)} left" if left >= 1 else "")
