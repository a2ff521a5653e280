"""What does the noise of a training step cost: drawn on the host and copied, or on the device by integer operations?

    python benchmarks/noise.py [--images 256] [--side 64] [--rounds 7] [--device auto] [--out FILE.json]

Three ways to draw the same number of normal numbers for a step, each a function of seed, step and slot:

- host: `slot_normal`, as training does: torch's generator of the CPU, in one thread, and one copy
- counter: Philox4x32-10 (Salmon et al., SC 2011) in torch's integer operations on the device, then Box and Muller. Its
  first numbers are compared with the vectors that its authors published
- device: a generator of the device for each eight slots, as before; other numbers on every kind of device

Kernels are operations on the device that are no views, and copies to it: of the way "host" one on a GPU, while on a CPU
its draws count. On a GPU the host draws while the device computes the step before, so that its seconds cost nothing
while they are fewer than those of a step.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import circumstances
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from patch_diffusion.devices import choose_device
from patch_diffusion.streams import SLOTS_PER_DRAW, slot_normal, stream_key
from patch_diffusion.transfer import to_device

MULTIPLIERS, INCREMENTS, ROUNDS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 10
MASK = 0xFFFFFFFF
PUBLISHED = {  # of Random123, kat_vectors, "philox4x32 10": counter, key, numbers
    (0, 0, 0, 0, 0, 0): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    (MASK,) * 6: (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0): (
        0xD16CFE09,
        0x94FDCCEB,
        0x5001E420,
        0x24126EA1,
    ),
}


def philox(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Return four tensors of random 32-bit numbers, in int64, for four tensors of counters that broadcast."""
    a, b, c, d = counter
    for number in range(ROUNDS):
        first, second = ((word + number * step) & MASK for word, step in zip(key, INCREMENTS, strict=True))
        (high_a, low_a), (high_c, low_c) = _product(a, MULTIPLIERS[0]), _product(c, MULTIPLIERS[1])
        a, b, c, d = high_c ^ b ^ first, low_c, high_a ^ d ^ second, low_a
    return [a, b, c, d]


def _product(numbers: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return the upper and the lower 32 bits of a product, by halves of 16 bits that int64 has room for."""
    low = (numbers & 0xFFFF) * factor
    high = (numbers >> 16) * factor + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def counter_normal(
    seed: int, name: str, step: int, slots: range, shape: tuple[int, ...], device: torch.device
) -> Tensor:
    """Draw normal numbers (len(slots), *shape) by counters of place, slot and step."""
    key, num = stream_key(seed, name), math.prod(shape)
    places = torch.arange(-(-num // 4), device=device)
    slot = torch.arange(slots.start, slots.stop, device=device)[:, None]
    none = torch.zeros(1, dtype=torch.int64, device=device)
    words = philox([places, slot, none + step, none], (key & MASK, key >> 32))
    shares = [(word.float() + 0.5) * 2.0**-32 for word in words]
    found = []
    for first, second in (shares[:2], shares[2:]):
        length, angle = (-2 * first.log()).sqrt(), 2 * math.pi * second
        found += [length * angle.cos(), length * angle.sin()]
    return torch.stack(found, dim=-1).flatten(1)[:, :num].reshape(len(slots), *shape)


def host_normal(seed: int, name: str, step: int, slots: range, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Draw as training does."""
    return to_device(slot_normal(seed, name, step, slots, shape, pinned=device.type == "cuda"), device)


def device_normal(
    seed: int, name: str, step: int, slots: range, shape: tuple[int, ...], device: torch.device
) -> Tensor:
    """Draw by a generator of the device for each eight slots."""
    draws = [
        torch.randn(
            (SLOTS_PER_DRAW, *shape),
            generator=torch.Generator(device).manual_seed(stream_key(seed, name, step, group)),
            device=device,
        )
        for group in range(-(-len(slots) // SLOTS_PER_DRAW))
    ]
    return torch.cat(draws)[: len(slots)]


class Kernels(TorchDispatchMode):
    """The number of operations that are no views, of those whose result is on the device or copied there."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.num = device, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        there = isinstance(found, Tensor) and found.device.type == self.device.type
        self.num += there and not func.is_view and "empty" not in str(func)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=256, help="in a step")
    parser.add_argument("--side", type=int, default=64, help="of the images, of three channels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    device, shape, slots = choose_device(arguments.device), (3, arguments.side, arguments.side), range(arguments.images)
    for given, expected in PUBLISHED.items():
        *counter, first, second = given
        words = philox([torch.tensor([word], device=device) for word in counter], (first, second))
        assert [int(word) for word in words] == list(expected), given

    ways: dict[str, Callable[..., Tensor]] = {"host": host_normal, "counter": counter_normal, "device": device_normal}
    results = {}
    for name, draw in ways.items():
        with Kernels(device) as kernels:
            numbers = draw(0, "noise", 0, slots, shape, device)
        assert abs(float(numbers.mean())) < 0.01 and abs(float(numbers.std()) - 1) < 0.01, name
        seconds = []
        for step in range(arguments.rounds):
            _wait(device)
            began = time.perf_counter()
            draw(0, "noise", step, slots, shape, device)
            _wait(device)
            seconds.append(time.perf_counter() - began)
        middle = statistics.median(seconds)
        results[name] = {
            "kernels": int(kernels.num),
            "seconds": middle,
            "seconds_of_rounds": seconds,
            "values_per_second": numbers.numel() / middle,
            "images_per_second": arguments.images / middle,
        }
        print(
            f"{name:>8}: {kernels.num:>4} kernels, {1e3 * middle:.1f} ms, {numbers.numel() / middle / 1e6:,.0f} million"
            f" numbers and {arguments.images / middle:,.0f} images a second",
            flush=True,
        )
    if arguments.out:
        about = {"images": arguments.images, "shape": shape, "device": str(device), "ways": results}
        arguments.out.write_text(json.dumps(circumstances() | about, indent=2) + "\n")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


if __name__ == "__main__":
    main()
