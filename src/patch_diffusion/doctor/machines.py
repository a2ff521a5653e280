"""Published figures of GPUs, for predictions of speed.

Peaks are those of dense products, with sums in float32. They are from the makers' data sheets and white papers:
T4 (NVIDIA T4 data sheet), RTX 3060 (its page of specifications, with the ratios between number formats of the GA102
white paper), RTX 4090 (Ada white paper), A100 80 GB, H100 and H200 (data sheets of the SXM modules, half of the figures
with sparsity), M1 Max and M2 (Apple's announcements of October 2021 and June 2022). Macs are sold with several sizes of
memory; the table has the smallest, 32 GB with an M1 Max (or 64) and 8 GB with an M2 (or up to 24).

How much of that software reaches, and what a launch costs, is in no data sheet. These are assumptions: large products
reach 70 % of the peak and copies 85 % of the bandwidth, each kernel takes 2 microseconds to begin, and Python with
torch launches one in 6 microseconds, on a Mac in 20.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """A GPU as a prediction sees it.

    Attributes:
        name: its name.
        fp32, tf32, half: floating-point operations a second of products of float32, of float32 rounded to TF32 (or
            float32 where the GPU has no TF32), and of bf16 or fp16.
        bandwidth: bytes a second of its memory.
        memory: bytes of it; None if they are not known.
        launch: seconds that a kernel takes to begin.
        host: seconds that the host takes to launch a kernel.
        reached: the share of the peaks that products reach.
        moved: the share of the bandwidth that kernels reach.
    """

    name: str
    fp32: float
    tf32: float
    half: float
    bandwidth: float
    memory: int | None = None
    launch: float = 2e-6
    host: float = 6e-6
    reached: float = 0.7
    moved: float = 0.85

    def peak(self, number_format: str) -> float:
        """Return the peak of products of a number format, such as "float32" or "bfloat16"."""
        return self.half if number_format in ("bfloat16", "float16") else self.tf32


MACHINES: dict[str, Machine] = {
    "t4": Machine("T4", 8.1e12, 8.1e12, 65e12, 320e9, 16_000_000_000),
    "rtx-3060": Machine("RTX 3060", 12.7e12, 12.7e12, 25.5e12, 360e9, 12_000_000_000),
    "rtx-4090": Machine("RTX 4090", 82.6e12, 82.6e12, 165.2e12, 1008e9, 24_000_000_000),
    "a100": Machine("A100 80 GB", 19.5e12, 156e12, 312e12, 2039e9, 80_000_000_000),
    "h100": Machine("H100 SXM", 67e12, 494e12, 989e12, 3350e9, 80_000_000_000),
    "h200": Machine("H200", 67e12, 494e12, 989e12, 4800e9, 141_000_000_000),
    "m1-max": Machine("M1 Max", 10.4e12, 10.4e12, 10.4e12, 400e9, 32_000_000_000, host=20e-6),
    "m2": Machine("M2", 3.6e12, 3.6e12, 3.6e12, 100e9, 8_000_000_000, host=20e-6),
}
"""GPUs by the names that ``benchmarks/roofline.py --gpu`` takes.

>>> MACHINES["t4"].peak("float16") / MACHINES["t4"].fp32 > 8
True
"""
