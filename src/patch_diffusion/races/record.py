"""The folder of a race: ``ARM-seedS/``, the run folder of each arm and seed, and ``race.json``, all results so far."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patch_diffusion.config import Config
from patch_diffusion.config_dict import BEFORE, flat, from_dict
from patch_diffusion.data.digest import change_of
from patch_diffusion.errors import InputError, reason_of
from patch_diffusion.files import read_json, write_json, write_text
from patch_diffusion.races.page import race_page
from patch_diffusion.races.standings import LossCurve, standings
from patch_diffusion.races.turns import Measurements, read_measurements
from patch_diffusion.runs.folder import RunFolder, refuse_occupied
from patch_diffusion.runs.history import DISTANCES, TIMES
from patch_diffusion.version import __version__


@dataclass(frozen=True)
class RaceFolder:
    """The folder of a race of several trainings, with the paths of the files in it."""

    path: Path

    @property
    def json_file(self) -> Path:
        """The path of ``race.json``, the file with all results of a race."""
        return self.path / "race.json"

    @property
    def page_file(self) -> Path:
        """The path of ``race.html``, the page that shows the results of a race."""
        return self.path / "race.html"

    @property
    def tuning(self) -> Path:
        """The folder of the trial trainings of a tuning sweep, which exists only while the sweep lasts."""
        return self.path / "tuning"

    def arm(self, name: str, seed: int) -> Path:
        """Return the path of the run folder of one configuration (arm) of a race, trained with one seed."""
        return self.path / f"{name}-seed{seed}"

    def measurements(self, name: str, seed: int) -> Measurements:
        """Read the held-out losses and sample distances of an arm and seed, so far, from the log of its training."""
        return read_measurements(RunFolder(self.arm(name, seed)).log_file)

    def configs(self) -> dict[str, Config]:
        """Return the options of each arm of the race in the folder; none if it is new."""
        plan = read_json(self.json_file).get("plan", {}) if self.json_file.exists() else {}
        where = str(self.json_file)
        return {name: from_dict(arm, base=BEFORE, where=where) for name, arm in plan.get("arms", {}).items()}

    def check_files(self) -> None:
        """Raise InputError if the folder is a file, or holds other files and no race."""
        if not self.json_file.exists():
            refuse_occupied(self.path, "race")

    def check(self, plan: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any] | None:
        """Return the results of this race in the folder, None if it is new.

        Raises:
            InputError: the folder has other files, a race of other arms or options, or other files where an arm is to
                be trained with one of the seeds.
        """
        self.check_files()
        if not self.json_file.exists():
            return None
        found = read_json(self.json_file)
        _check_same(self.path, found.get("plan", {}), plan)
        for run in (RunFolder(self.arm(name, seed)) for name in plan["arms"] for seed in seeds):
            if not run.is_run():
                refuse_occupied(run.path, "run")
        return found

    def check_data(self, found: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Raise InputError if the images, or those to judge by, are not those that the race began with."""
        for name, which in (("data_digest", "images"), ("judges_digest", "held-out images")):
            if change := change_of(found.get(name, {}), facts[name]):
                raise InputError(
                    f"{self.path} holds a race whose {which} have changed ({change}): bring them back as they were, "
                    "or choose another folder"
                )


class Record:
    """The results of a race so far, which it writes to ``race.json`` and ``race.html``.

    Args:
        folder: the folder of the race.
        found: the content of ``race.json`` of a race that continues, None for a new race.
        plan: the arms and options of the race, which stay the same for as long as the race lasts.
        facts: facts about the images, the budget and the arms.
        tell: function that tells the user of a page that could not be written.
    """

    def __init__(
        self,
        folder: RaceFolder,
        found: Mapping[str, Any] | None,
        plan: Mapping[str, Any],
        facts: Mapping[str, Any],
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder = folder
        self._tell = tell
        new = {"seeds": [], "circumstances": [], "tuning": {}}
        self._content = {"version": __version__, "plan": plan, **new, **(found or {}), **facts}

    @property
    def seeds(self) -> list[int]:
        """The random seeds with which all arms are trained."""
        return self._content["seeds"]

    def begin(self, seeds: Sequence[int], circumstances: Mapping[str, Any]) -> None:
        """Add the seeds with which a race begins or continues, and the machine if it trains; write the results."""
        self._content["seeds"] = list(dict.fromkeys([*self.seeds, *seeds]))
        trains = not all(map(self.is_finished, self.seeds))
        if trains and circumstances not in self._content["circumstances"]:
            self._content["circumstances"] = [*self._content["circumstances"], circumstances]
        self.write()

    def tuning(self, name: str) -> dict[str, Any]:
        """Return the results of an arm's tuning sweep so far, an empty dict if there are none."""
        return self._content["tuning"].get(name, {})

    def tuned(self, name: str, found: Mapping[str, Any]) -> None:
        """Store the results of an arm's tuning sweep so far, and write all results."""
        self._content["tuning"] = {**self._content["tuning"], name: found}
        self.write()

    def is_finished(self, seed: int) -> bool:
        """True if all arms have spent their training budgets with this seed."""
        ends = [self.folder.measurements(name, seed)[-1:] for name in self._content["plan"]["arms"]]
        return all(end and end[0]["spent"] >= 1 for end in ends)

    def moments(self, seed: int) -> int:
        """Return how many times all arms have been judged while trained with this seed."""
        return min(len(self.folder.measurements(name, seed)) for name in self._content["plan"]["arms"])

    def write(self) -> dict[str, Any]:
        """Collect results from all logs, write ``race.json`` and ``race.html``, and return what the first holds."""
        names, (time, factor) = self._content["plan"]["arms"], TIMES[self._content["unit"]]
        points = {name: {seed: self.folder.measurements(name, seed) for seed in self.seeds} for name in names}
        finished = [seed for seed in self.seeds if self.is_finished(seed)]

        def curve(name: str, seed: int, measure: str) -> LossCurve:
            return [(factor * point[time], point[measure]) for point in points[name][seed] if measure in point]

        def standings_by(measure: str) -> dict[str, Any]:
            return standings({name: {seed: curve(name, seed, measure) for seed in finished} for name in names})

        asked = next(iter(self._content["plan"]["arms"].values()))["watch"]["metrics"]
        distances = {measure: standings_by(measure) for measure in DISTANCES if measure in asked}
        content = {**self._content, "points": points, "standings": standings_by("loss"), "distances": distances}
        content = json.loads(json.dumps(content))  # keys become text, as in a file that is read again
        write_json(self.folder.json_file, content)
        try:
            write_text(self.folder.page_file, race_page(self.folder.path.resolve().name, content))
        except Exception as error:  # the page shows what race.json holds
            self._tell(f"WARNING: {self.folder.page_file} could not be written ({reason_of(error)})")
        return content


def _check_same(path: Path, stored: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Raise InputError if the stored race of a folder has other arms or other options than the requested one."""
    arms, others = stored.get("arms", {}), plan["arms"]
    if list(arms) != list(others):
        raise InputError(
            f"{path} holds a race of {', '.join(arms)}, and this one is of {', '.join(others)}: choose another folder"
        )
    before, now = (
        flat(each["arms"]) | {name: value for name, value in each.items() if name != "arms"}
        for each in (stored, json.loads(json.dumps(plan)))
    )
    changed = [name for name in now if before.get(name) != now[name] and not name.endswith("data.cache")]
    if changed:
        more = ", ..." if len(changed) > 3 else ""
        raise InputError(
            f"{path} holds a race with other options ({', '.join(changed[:3])}{more}): choose another folder, or give "
            "those that it began with"
        )
