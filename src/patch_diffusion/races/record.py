"""The folder of a race: ``ARM-seedS/``, a run each, and ``race.json``, all that was found so far."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from patch_diffusion.config import flat
from patch_diffusion.errors import InputError
from patch_diffusion.files import read_json, write_json, write_text
from patch_diffusion.races.judging import Measured, measured
from patch_diffusion.races.page import race_page
from patch_diffusion.races.standings import standings
from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.runs.history import DISTANCES, TIMES
from patch_diffusion.runs.lock import LOCK_FILE


@dataclass(frozen=True)
class RaceFolder:
    """What lies where."""

    path: Path

    @property
    def json_file(self) -> Path:
        """All that was found."""
        return self.path / "race.json"

    @property
    def page_file(self) -> Path:
        """The same to look at."""
        return self.path / "race.html"

    @property
    def tuning(self) -> Path:
        """Where the trials of a sweep are, while it lasts."""
        return self.path / "tuning"

    def arm(self, name: str, seed: int) -> Path:
        """The run of an arm with a seed."""
        return self.path / f"{name}-seed{seed}"

    def measured(self, name: str, seed: int) -> Measured:
        """What was measured of an arm so far."""
        return measured(RunFolder(self.arm(name, seed)).log_file)

    def check(self, plan: Mapping[str, Any]) -> dict[str, Any] | None:
        """The race that is here, None where the place is new; any other place, or race, is refused."""
        if self.json_file.exists():
            found = read_json(self.json_file)
            _check_same(self.path, found.get("plan", {}), plan)
            return found
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file: give a folder for the race")
        others = sorted(entry.name for entry in self.path.iterdir()) if self.path.is_dir() else []
        if others := [name for name in others if name != LOCK_FILE]:
            raise InputError(
                f"{self.path} holds other files ({others[0]}{', ...' if len(others) > 1 else ''}) and no race: choose "
                "a new or an empty folder"
            )
        return None


class Record:
    """What is known of a race, in ``race.json`` and ``race.html``.

    Args:
        folder: of the race.
        found: what is there already, None for a new one.
        plan: what was asked for, which is the same for as long as the race lasts.
        facts: what there is to know of the images, the budget and the arms.
    """

    def __init__(
        self, folder: RaceFolder, found: Mapping[str, Any] | None, plan: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> None:
        self.folder = folder
        new = {"seeds": [], "circumstances": [], "tuning": {}}
        self._content = {"version": version("patch_diffusion"), "plan": plan, **new, **(found or {}), **facts}

    @property
    def seeds(self) -> list[int]:
        """All that the arms race with."""
        return self._content["seeds"]

    def sit_down(self, seeds: Sequence[int], circumstances: Mapping[str, Any]) -> None:
        """The race begins, or goes on, perhaps with more seeds or elsewhere."""
        self._content["seeds"] = list(dict.fromkeys([*self.seeds, *seeds]))
        if circumstances not in self._content["circumstances"]:
            self._content["circumstances"] = [*self._content["circumstances"], circumstances]
        self.write()

    def rounds(self, name: str) -> list[dict[str, Any]]:
        """The rounds of an arm's sweep that are finished."""
        return self._content["tuning"].get(name, {}).get("rounds", [])

    def add_round(self, name: str, finished: Mapping[str, Any]) -> None:
        """One more is finished."""
        self.tuned(name, {"rounds": [*self.rounds(name), finished]})

    def tuned(self, name: str, found: Mapping[str, Any]) -> None:
        """What a sweep has found so far."""
        self._content["tuning"] = {**self._content["tuning"], name: found}
        self.write()

    def is_finished(self, seed: int) -> bool:
        """Whether all arms have come to the end with it."""
        ends = [self.folder.measured(name, seed)[-1:] for name in self._content["plan"]["arms"]]
        return all(end and end[0]["spent"] >= 1 for end in ends)

    def moments(self, seed: int) -> int:
        """At how many all arms were looked at with it."""
        return min(len(self.folder.measured(name, seed)) for name in self._content["plan"]["arms"])

    def write(self) -> dict[str, Any]:
        """Write all that is known anew; returns it."""
        names, factor = self._content["plan"]["arms"], TIMES[self._content["unit"]]
        points = {name: {seed: self.folder.measured(name, seed) for seed in self.seeds} for name in names}
        finished = [seed for seed in self.seeds if self.is_finished(seed)]

        def standings_by(measure: str) -> dict[str, Any]:
            return standings(
                {name: {seed: _curve(points[name][seed], *factor, measure) for seed in finished} for name in names}
            )

        asked = next(iter(self._content["plan"]["arms"].values()))["watch"]["metrics"]
        distances = {measure: standings_by(measure) for measure in DISTANCES if measure in asked}
        content = {**self._content, "points": points, "standings": standings_by("loss"), "distances": distances}
        content = json.loads(json.dumps(content))  # keys are words, as they will be when it is read again
        write_json(self.folder.json_file, content)
        write_text(self.folder.page_file, race_page(self.folder.path.resolve().name, content))
        return content


def _curve(points: Measured, time: str, factor: float, measure: str) -> list[tuple[float, float]]:
    return [(factor * point[time], point[measure]) for point in points]


def _check_same(path: Path, stored: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Only the same race goes on."""
    arms, others = stored.get("arms", {}), plan["arms"]
    if list(arms) != list(others):
        raise InputError(
            f"{path} holds a race of {', '.join(arms)}, and this one is of {', '.join(others)}: choose another folder"
        )
    before, now = ({**flat(each["arms"]), **_but_arms(each)} for each in (stored, json.loads(json.dumps(plan))))
    changed = [name for name in now if before.get(name) != now[name] and not name.endswith("data.cache")]
    if changed:
        more = ", ..." if len(changed) > 3 else ""
        raise InputError(
            f"{path} holds a race with other options ({', '.join(changed[:3])}{more}): choose another folder, or give "
            "those that it began with"
        )


def _but_arms(plan: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in plan.items() if name != "arms"}
