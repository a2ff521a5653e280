"""The folder of a race: ``ARM-seedS/``, a run for each arm and seed, and ``race.json``, all results so far."""

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
from patch_diffusion.races.page import race_page
from patch_diffusion.races.standings import standings
from patch_diffusion.races.turns import Measurements, read_measurements
from patch_diffusion.runs.folder import RunFolder, refuse_occupied
from patch_diffusion.runs.history import DISTANCES, TIMES


@dataclass(frozen=True)
class RaceFolder:
    """The paths of the files in the folder of a race."""

    path: Path

    @property
    def json_file(self) -> Path:
        """The path of the file with all results."""
        return self.path / "race.json"

    @property
    def page_file(self) -> Path:
        """The path of the HTML page that shows the results."""
        return self.path / "race.html"

    @property
    def tuning(self) -> Path:
        """The folder of the trials of a sweep, which exists while the sweep lasts."""
        return self.path / "tuning"

    def arm(self, name: str, seed: int) -> Path:
        """Return the run folder of an arm with a seed."""
        return self.path / f"{name}-seed{seed}"

    def measurements(self, name: str, seed: int) -> Measurements:
        """Read all measurements of an arm with a seed so far."""
        return read_measurements(RunFolder(self.arm(name, seed)).log_file)

    def check(self, plan: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the content of a race that is here, None if the folder is new; refuse other files and other races."""
        if self.json_file.exists():
            found = read_json(self.json_file)
            _check_same(self.path, found.get("plan", {}), plan)
            return found
        refuse_occupied(self.path, "race")
        return None


class Record:
    """The results of a race so far, kept in ``race.json`` and ``race.html``.

    Args:
        folder: the folder of the race.
        found: the content of a race that continues, None for a new one.
        plan: the requested race, which stays the same for as long as the race lasts.
        facts: facts about the images, the budget and the arms.
    """

    def __init__(
        self, folder: RaceFolder, found: Mapping[str, Any] | None, plan: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> None:
        self.folder = folder
        new = {"seeds": [], "circumstances": [], "tuning": {}}
        self._content = {"version": version("patch_diffusion"), "plan": plan, **new, **(found or {}), **facts}

    @property
    def seeds(self) -> list[int]:
        """The seeds that all arms race with."""
        return self._content["seeds"]

    def begin(self, seeds: Sequence[int], circumstances: Mapping[str, Any]) -> None:
        """Record that a race begins or continues, perhaps with more seeds or on another machine."""
        self._content["seeds"] = list(dict.fromkeys([*self.seeds, *seeds]))
        if circumstances not in self._content["circumstances"]:
            self._content["circumstances"] = [*self._content["circumstances"], circumstances]
        self.write()

    def rounds(self, name: str) -> list[dict[str, Any]]:
        """Return the finished rounds of an arm's sweep."""
        return self._content["tuning"].get(name, {}).get("rounds", [])

    def tuned(self, name: str, found: Mapping[str, Any]) -> None:
        """Record the results of an arm's sweep so far."""
        self._content["tuning"] = {**self._content["tuning"], name: found}
        self.write()

    def is_finished(self, seed: int) -> bool:
        """True if all arms have spent their budget with a seed."""
        ends = [self.folder.measurements(name, seed)[-1:] for name in self._content["plan"]["arms"]]
        return all(end and end[0]["spent"] >= 1 for end in ends)

    def moments(self, seed: int) -> int:
        """Return the number of moments at which all arms were judged with a seed."""
        return min(len(self.folder.measurements(name, seed)) for name in self._content["plan"]["arms"])

    def write(self) -> dict[str, Any]:
        """Rewrite ``race.json`` and ``race.html``, and return the content of the former."""
        names, (time, factor) = self._content["plan"]["arms"], TIMES[self._content["unit"]]
        points = {name: {seed: self.folder.measurements(name, seed) for seed in self.seeds} for name in names}
        finished = [seed for seed in self.seeds if self.is_finished(seed)]

        def standings_by(measure: str) -> dict[str, Any]:
            return standings(
                {
                    name: {
                        seed: [(factor * point[time], point[measure]) for point in points[name][seed]]
                        for seed in finished
                    }
                    for name in names
                }
            )

        asked = next(iter(self._content["plan"]["arms"].values()))["watch"]["metrics"]
        distances = {measure: standings_by(measure) for measure in DISTANCES if measure in asked}
        content = {**self._content, "points": points, "standings": standings_by("loss"), "distances": distances}
        content = json.loads(json.dumps(content))  # keys become text, as in a file that is read again
        write_json(self.folder.json_file, content)
        write_text(self.folder.page_file, race_page(self.folder.path.resolve().name, content))
        return content


def _check_same(path: Path, stored: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Refuse to continue a race with other arms or other options."""
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
