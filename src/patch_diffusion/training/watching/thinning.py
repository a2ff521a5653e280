"""Evaluations of a training by minutes: as often, and on as many images, as add at most a twentieth to the training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from patch_diffusion.training.budget import Cadence

SHARE = 0.05
"""The most time that evaluations add to a training by minutes, as a fraction of the training."""

_PLANNED = 0.8  # the part of that which is planned for, since times vary
_FEW = 3  # moments that are kept as long as there are images to leave out


@dataclass(frozen=True)
class Evaluation:
    """One kind of evaluation, such as pictures of samples.

    Args:
        name: the evaluation in words, with a place for the number of images, "pictures of {} samples".
        moments: when it is made.
        images: the number of images it is made of.
        least: the fewest images that are of use.
        seconds: how long it takes for each image.
    """

    name: str
    moments: Cadence
    images: int
    least: int
    seconds: float = 0.0

    @property
    def cost(self) -> float:
        """The seconds that this evaluation takes once."""
        return self.images * self.seconds

    def thinned(self, seconds: float) -> Evaluation:
        """Return this evaluation with as many moments and images as fit into ``seconds``, summed over the training.

        Moments are left out first, then images, then the remaining moments.
        """
        parts, fewest, each = self.moments.parts, min(self.least, self.images), max(self.seconds, 1e-9)
        images, moments = self.images, int(seconds / (each * max(self.images, 1)))
        if moments < min(_FEW, parts):
            images = min(max(int(seconds / (each * min(_FEW, parts))), fewest), self.images)
            moments = min(int(seconds / (each * images)), _FEW)
        if not moments:
            return replace(self, moments=Cadence(0))
        return replace(self, moments=Cadence(parts, stride=-(-parts // min(moments, parts))), images=images)

    def difference(self, asked: Evaluation) -> str:
        """Return in words what is made of the evaluation that was asked for; an empty text if all of it is."""
        if self.moments == asked.moments and self.images == asked.images:
            return ""
        if not self.moments.times:
            return f"no {asked.name.partition(' of ')[0]}"
        fewer = f" (not {asked.images})" if self.images < asked.images else ""
        often = f", {_times(self.moments.times)} (not {_times(asked.moments.times)})"
        return self.name.format(self.images) + fewer + (often if self.moments.times < asked.moments.times else "")


class Evaluations:
    """The evaluations of a run, which in a training by minutes are thinned to what there is time for.

    Args:
        asked: the evaluations by name, as asked for.
        seconds: the length of a training by minutes; None: one by steps or images, where nothing is left out, so that
            its log repeats.
    """

    def __init__(self, asked: Mapping[str, Evaluation], seconds: float | None) -> None:
        self._each, self._seconds = dict(asked), seconds
        self.is_planned: bool = seconds is None

    def __getitem__(self, name: str) -> Evaluation:
        return self._each[name]

    def plan(self, images: Mapping[str, int], seconds: Mapping[str, float]) -> str:
        """Plan the evaluations by the seconds that each takes for an image.

        Args:
            images: the number of images that the run was evaluated on before it was stopped, if it was.
            seconds: by name, as measured.

        Returns:
            A sentence for the user on what is made, and what not; an empty text if nothing is left out.
        """
        assert self._seconds is not None
        asked = {
            name: replace(each, images=images.get(name, each.images), seconds=seconds[name])
            for name, each in self._each.items()
        }
        # The cheapest comes first, so that the time it does not need is the other's.
        by_cost = sorted(asked, key=lambda name: asked[name].cost * asked[name].moments.times)
        wanted = [name for name in by_cost if asked[name].moments.times]
        self._each, self.is_planned, left = dict(asked), True, _PLANNED * SHARE * self._seconds
        for place, name in enumerate(wanted):
            self._each[name] = asked[name].thinned(left / (len(wanted) - place))
            left -= self._each[name].cost * self._each[name].moments.times
        said = [text for name in self._each if (text := self._each[name].difference(asked[name]))]
        return f"evaluation is cut to {SHARE:.0%} of the training time: {'; '.join(said)}" if said else ""

    def took(self, name: str, seconds: float) -> None:
        """Correct the time that an evaluation is known to take, after it was made."""
        self._each[name] = replace(self._each[name], seconds=seconds / self._each[name].images)

    def have_room(self, name: str, used: float, *, last: bool) -> bool:
        """Return True if there is time for an evaluation now, and for the last of each kind at the end.

        Args:
            name: the evaluation.
            used: the seconds that evaluations took so far.
            last: True at the end of the training.
        """
        if self._seconds is None:
            return True
        later = 0.0 if last else self.at_the_end
        return self._each[name].moments.times > 0 and used + self._each[name].cost + later <= SHARE * self._seconds

    @property
    def at_the_end(self) -> float:
        """The seconds that the last evaluations take, after the last step."""
        return sum(each.cost for each in self._each.values() if each.moments.times)


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")
