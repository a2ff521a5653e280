"""The watchdog, which tells by the losses a training that goes wrong from one that only fluctuates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from patch_diffusion.records import Strict
from patch_diffusion.runs.floor import LinearFloor
from patch_diffusion.training.losses import Summary

RISEN, EXPLODED = 2.5, 10.0
"""The ratio of a loss to its running mean from which it is suspicious, and from which it is clearly wrong."""

PATIENCE = 10
"""The number of suspicious log lines in a row that count as failure; of clearly wrong ones, two are enough."""

LOST = 10
"""The number of steps without finite gradients, in log lines in a row where most are so, that count as failure."""

COLLAPSED = 0.01
"""Standard deviation of the pixels of a sample, as a share of that of the data, under which it shows nothing."""

SLOWER = 0.5
"""The factor of the learning rate after a training has gone back to an earlier checkpoint."""

LAYOUT_BY = 0.5
"""The share of the budget from which a model should denoise the layout of images better than a linear denoiser."""

_MEMORY = 0.9  # of the running mean of the losses of healthy lines


@dataclass
class Watchdog(Strict):
    """A judge of the losses in each log line, which notices diverging training. Its memory is part of a checkpoint.

    ``usual`` are running means of the losses by size; ``suspicion`` counts up to `PATIENCE`; ``lost``, of the last
    ``of`` steps, up to `LOST`; ``good`` is the step of the last line without suspicion; ``rate`` what the learning rate
    is multiplied by, below 1 once training has gone ``back``.
    """

    usual: dict[str, float] = field(default_factory=dict)
    suspicion: int = 0
    good: int = 0
    skipped: int = 0
    rate: float = 1.0
    back: bool = False
    lost: int = 0
    of: int = 0

    def judge(self, step: int, summary: Summary, *, last: bool = False) -> str:
        """Return what is wrong with the training after ``step``, as the start of a sentence; empty if nothing is.

        By the ``last`` line of a run that is shorter than `LOST` steps, most of them may be without gradients.
        """
        skipped, self.skipped = summary.skipped - self.skipped, summary.skipped
        if 2 * skipped > summary.num_steps:
            self.lost, self.of = self.lost + skipped, self.of + summary.num_steps
            if self.lost >= LOST or (last and 2 * summary.skipped > step):
                lost, of, self.lost, self.of = self.lost, self.of, 0, 0
                return f"the gradients of {lost} of the last {of} steps were not finite"
            return ""
        self.lost = self.of = 0
        ratios = [loss / self.usual[size] for size, loss in summary.by_size.items() if self.usual.get(size)]
        ratio = sum(ratios) / len(ratios) if ratios else 1.0
        if ratio > RISEN:
            self.suspicion += PATIENCE // 2 if ratio > EXPLODED else 1
            if self.suspicion >= PATIENCE:
                return f"the loss has risen to {ratio:.1f} times what it was"
            return ""
        self.suspicion = 0
        self.good = step
        for size, loss in summary.by_size.items():
            self.usual[size] = _MEMORY * self.usual.get(size, loss) + (1 - _MEMORY) * loss
        return ""

    def gone_back(self, step: int) -> Watchdog:
        """Return the watchdog for a training that has gone back to ``step`` and goes on at a lower learning rate."""
        return Watchdog(dict(self.usual), 0, step, self.skipped, SLOWER * self.rate, True)


def lacks_layout(spent: float, by_noise: Mapping[str, float], floor: LinearFloor) -> str:
    """Return the advice on a model that lags behind a linear denoiser at the highest noise level; empty if it does not.

    Args:
        spent: the spent share of the budget; before `LAYOUT_BY` there is no advice.
        by_noise: the model's loss of held-out images by noise level, as the log writes it.
        floor: the loss of the best linear denoiser.
    """
    level = floor.above(by_noise) if spent >= LAYOUT_BY else ""
    if not level:
        return ""
    end = "" if spent >= 1 else ", if it stays so"
    return (
        f"the model has not learned the layout of the images yet: at noise {level} its held-out loss is "
        f"{by_noise[level]:.2f}, that of the best linear denoiser {floor.by_noise[level]:.2f}: train longer, or on "
        f"more whole images (patches.whole){end}"
    )
