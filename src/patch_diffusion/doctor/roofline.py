"""A prediction of the speed of counted kernels on a GPU, by the roofline model.

A kernel takes ``max(bytes / bandwidth, operations / peak)``, and the time to begin it. A GPU runs one after the other,
and is no faster than the host launches them. Caches, fusion and the shape of a product are not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

from patch_diffusion.doctor.kernels import Kernel, KernelCounter
from patch_diffusion.doctor.machines import Machine


@dataclass(frozen=True)
class Prediction:
    """The predicted time of some kernels, in seconds.

    Attributes:
        memory: of kernels that are bound by memory.
        arithmetic: of those that are bound by arithmetic.
        launch: the time to begin all of them.
        host: the time that the host takes to launch them.
        utilisation: the share of the GPU's peak that products reach, in the number formats that they compute in.
    """

    memory: float
    arithmetic: float
    launch: float
    host: float
    utilisation: float

    @property
    def seconds(self) -> float:
        """The time of all: that of the device or of the host, whichever is longer."""
        return max(self.memory + self.arithmetic + self.launch, self.host)

    @property
    def bound(self) -> str:
        """The name of what takes longest: "launches", "memory" or "arithmetic"."""
        if self.host >= self.memory + self.arithmetic + self.launch:
            return "launches"
        return max(("memory", "arithmetic"), key=lambda name: getattr(self, name))


def predict(counter: KernelCounter, machine: Machine) -> Prediction:
    """Predict how long counted kernels take on a GPU.

    >>> counter = KernelCounter()
    >>> with counter:
    ...     total = torch.zeros(10) + 1
    >>> predict(counter, MACHINES["t4"]).bound
    'launches'
    """
    memory = arithmetic = at_peak = 0.0
    launches = 0
    for kernel, times in counter.found.items():
        moving, computing = _seconds(kernel, machine)
        memory += times * moving * (moving >= computing)
        arithmetic += times * computing * (moving < computing)
        at_peak += times * computing * machine.reached
        launches += times * kernel.launches
    found = Prediction(memory, arithmetic, launches * machine.launch, launches * machine.host, 0.0)
    return Prediction(memory, arithmetic, found.launch, found.host, at_peak / found.seconds if launches else 0.0)


def _seconds(kernel: Kernel, machine: Machine) -> tuple[float, float]:
    """Return the seconds that a kernel's bytes and operations take."""
    moving = kernel.moved / (machine.bandwidth * machine.moved)
    return moving, kernel.operations / (machine.peak(kernel.format) * machine.reached)
