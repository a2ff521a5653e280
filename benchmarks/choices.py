"""Which network and batch does training choose on a laptop and on GPUs, for 1, 10 and 100 hours, and how busy are they?

    python benchmarks/choices.py --out FILE.json [--machines laptop t4 h200] [--hours 1 10 100] [--side 64]

The choice is the package's own, see `patch_diffusion.training.choices.size`. Nothing is measured on a GPU: in place of
timed steps it is given predicted ones, of the same networks and batches. Their kernels are counted, and a data sheet
tells how long they take, as `roofline.py --gpu` does it. Weights and images have 80 % of a GPU's memory. The number
format is the one that ``engine.precision auto`` takes there; a T4 takes fp16 and is predicted with bf16 in its place.

"laptop" is this processor, with its steps timed, in fp32. Then training with each choice is measured and predicted by
the processor's own figures, as in `roofline.py`: this tells how far such predictions are off. "predicted" below it is
what would be chosen by predicted steps.

"used" is the share of the peak of products: operations of training, without the optimizer's, a second. For GPUs, images
and operations are those that the predicted steps of the choice reach.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measuring import circumstances
from processor import measure
from roofline import of_preset, seconds_predicted
from throughput import rate_of_products

import patch_diffusion as pd
from patch_diffusion.config import Network
from patch_diffusion.denoise.threads import can_share
from patch_diffusion.devices import memory_of
from patch_diffusion.doctor.counting import CountedStep, count_activations, count_steps
from patch_diffusion.doctor.machines import MACHINES
from patch_diffusion.doctor.roofline import predict
from patch_diffusion.patches.shapes import Shape
from patch_diffusion.runs.model import build_denoiser, build_network
from patch_diffusion.training.budget import training_flops
from patch_diffusion.training.choices.law import worth
from patch_diffusion.training.choices.size import Speed, choose_size
from patch_diffusion.training.hardware.memory import memory_of_weights, most_images
from patch_diffusion.training.timing import fit_speed, measure_speed

LAPTOP = "laptop"
GPUS = ("t4", "rtx-4090", "a100", "h200")
GIVEN = ("engine.precision",)
IMAGES = 256  # random ones; the choice does not depend on them


class Model:
    """A network without numbers: its parameters, and the operations of training on an image."""

    def __init__(self, config: pd.Config) -> None:
        with torch.device("meta"):
            self.network = build_network(config.network, 3, 0, coords=config.patches.coords)
            self.denoiser = build_denoiser(config, self.network, 0.5)
        self.weights = memory_of_weights(self.network, len(config.ema.lengths))
        self.parameters = sum(weight.numel() for weight in self.network.parameters())
        self._operations: dict[Shape, int] = {}  # of one image

    def operations(self, step: CountedStep) -> int:
        """Return the operations of training of a step."""
        shape = step.size.shape
        if shape not in self._operations:
            self._operations[shape] = training_flops(self.denoiser, 3, shape)
        return step.num * self._operations[shape]


class Counts:
    """The counts of steps on square images, kept, as machines and budgets share them."""

    def __init__(self, side: int) -> None:
        self.shape = (side, side)
        self._steps: dict[Any, list[CountedStep]] = {}
        self._activations: dict[Any, int] = {}
        self._models: dict[Network, Model] = {}

    def model(self, config: pd.Config) -> Model:
        """Return the model of a config."""
        if config.network not in self._models:
            self._models[config.network] = Model(config)
        return self._models[config.network]

    def steps(self, config: pd.Config, threads: int = 1) -> list[CountedStep]:
        """Return the counted steps of a config, of each patch size; on a CPU of one thread of those that share it."""
        engine = config.engine
        key = config.network, config.batch, config.patches.whole, engine.precision, engine.accumulation, threads
        if key not in self._steps:
            self._steps[key] = count_steps(replace(config, batch_pixels=None), self.shape, threads=threads)
        return self._steps[key]

    def activations(self, config: pd.Config) -> int:
        """Return the bytes that one image adds to a step."""
        key = config.network, config.engine.precision
        if key not in self._activations:
            self._activations[key] = count_activations(config, self.shape)
        return self._activations[key]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--machines", nargs="+", default=(LAPTOP, *GPUS), choices=(LAPTOP, *MACHINES))
    parser.add_argument("--hours", nargs="+", type=float, default=(1, 10, 100))
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    counts, rows = Counts(arguments.side), []
    print("GPUs are predicted, not measured.")
    print(
        f"{'machine':11}{'hours':>6}{'parameters':>12}{'network':>8}{'batch':>6}{'images':>8}{'FLOP':>8}{'used':>6} law"
    )
    for name in arguments.machines:
        found = on_this_processor(counts, arguments) if name == LAPTOP else on_gpu(name, counts, arguments)
        for row in found:
            rows.append(row)
            print(line(row), flush=True)
    if arguments.out:
        settings = {name: value for name, value in vars(arguments).items() if name != "out"}
        arguments.out.write_text(json.dumps({**circumstances(), "settings": settings, "rows": rows}, indent=1) + "\n")


def line(row: dict[str, Any]) -> str:
    """Return the line of the table; below a measured one, how far the prediction of its speed is off."""
    network = f"{row['width']}x{row['blocks']}"
    text = (
        f"{row['machine']:11}{row['hours']:6g}{row['parameters']:12,}{network:>8}{row['batch']:6}{row['images']:8.1e}"
        f"{row['operations']:8.1e}{row['utilisation']:6.1%} {row['source']}"
    )
    if "error" in row:
        text += f"\n  speed predicted {row['error']:+.0%}, used {row['predicted_utilisation']:.1%}"
    return text


def pictures(side: int) -> pd.ImageSet:
    random = torch.Generator().manual_seed(0)
    return pd.ImageSet(torch.randint(0, 256, (IMAGES, 3, side, side), dtype=torch.uint8, generator=random))


def budget(hours: float, precision: Any) -> pd.Config:
    config = pd.Config(minutes=60 * hours)
    return replace(config, engine=replace(config.engine, precision=precision))


@dataclass
class Predicted:
    """Predicted steps of a machine.

    Attributes:
        counts: the counts of steps.
        seconds: function that predicts the seconds of a step.
        peak: the operations of products that the machine does a second.
        memory: its bytes; None if they are not known.
        threads: threads of a CPU that share each batch.
        timed: the networks whose speed was asked for.
    """

    counts: Counts
    seconds: Callable[[CountedStep], float]
    peak: float
    memory: int | None
    threads: int = 1
    timed: list[Network] = field(default_factory=list)

    def speed(self, config: pd.Config) -> Speed:
        """Return what `measure_speed` would, of predicted seconds."""
        self.timed.append(config.network)
        model, activations = self.counts.model(config), self.counts.activations(config)

        def time_steps(batches: Sequence[int]) -> dict[int, float]:
            steps = [step for each in batches for step in self.counts.steps(replace(config, batch=each), self.threads)]
            return {model.operations(step): self.seconds(step) for step in steps}

        overhead, rate = fit_speed(time_steps, most_images(model.weights, activations, self.memory))
        return Speed(overhead, rate, activations, self.memory)

    def reached(self, config: pd.Config, hours: float) -> dict[str, Any]:
        """Return what training with a choice reaches in so many hours, in parts of a batch where memory requires it."""
        model, batch = self.counts.model(config), config.batch
        assert isinstance(batch, int)
        most = most_images(model.weights, self.counts.activations(config), self.memory)
        at_a_time = max(1, int(min(most, batch)))
        parts = -(-batch // at_a_time)
        config = replace(config, engine=replace(config.engine, accumulation=parts))
        steps = self.counts.steps(config, self.threads)

        def mean(value: Callable[[CountedStep], float]) -> float:
            return sum(step.size.probability * value(step) for step in steps)

        took, operations = mean(self.seconds), mean(model.operations)
        num = 3600 * hours / took
        return {
            **chosen(config, model),
            "at_a_time": at_a_time,
            "parts": parts,
            "step_seconds": took,
            "images": num * mean(lambda step: step.num),
            "operations": num * operations,
            "utilisation": operations / took / self.peak,
            "source": worth(num * operations, math.prod(self.counts.shape)).source,
        }


def on_gpu(name: str, counts: Counts, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the choices on a GPU, by predicted steps alone."""
    machine = MACHINES[name]
    precision = "fp32" if machine.half == machine.fp32 else "bf16"  # which a Mac does not take unless asked to
    peak = machine.peak({"fp32": "float32", "bf16": "bfloat16"}[precision])
    for hours in arguments.hours:
        predicted = Predicted(counts, lambda step: predict(step.kernels, machine).seconds, peak, machine.memory)
        with patch("patch_diffusion.training.choices.size.choose_device", lambda _: torch.device("cuda")):
            config, reasons = choose_size(pictures(arguments.side), budget(hours, precision), GIVEN, predicted.speed)
        found = predicted.reached(config, hours)
        yield {"machine": name, "hours": hours, "how": "predicted", **found, **told(reasons, predicted.timed)}


def on_this_processor(counts: Counts, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the choices on this processor by measured steps, and after each what predicted steps would choose."""
    threads, images = torch.get_num_threads(), pictures(arguments.side)
    figures = {"alone": measure(1, split=True)}
    figures["shared"] = measure(threads, split=False) if threads > 1 else figures["alone"]
    figures["split"] = measure(threads, split=True) if threads > 1 else figures["alone"]
    peak, memory = rate_of_products(torch.device("cpu"), torch.float32), memory_of(torch.device("cpu"))
    speeds: dict[Network, Speed] = {}
    timed: list[Network] = []

    def speed(config: pd.Config) -> Speed:
        timed.append(config.network)
        if config.network not in speeds:
            speeds[config.network] = measure_speed(images, config)
        return speeds[config.network]

    for hours in arguments.hours:
        timed.clear()
        config, reasons = choose_size(images, budget(hours, "fp32"), GIVEN, speed)
        trained = replace(config, minutes=None, samples=0)
        training = of_preset(LAPTOP, trained, arguments.side, figures, threads, peak)
        operations = 3600 * hours * training["measured_utilisation"] * peak
        yield {
            "machine": LAPTOP,
            "hours": hours,
            "how": "measured",
            **chosen(config, counts.model(config)),
            "images": 3600 * hours * training["measured_images_per_second"],
            "operations": operations,
            "utilisation": training["measured_utilisation"],
            "predicted_utilisation": training["predicted_utilisation"],
            "error": training["ratio"] - 1,
            "source": worth(operations, arguments.side**2).source,
            **told(reasons, timed),
        }
        shared = threads > 1 and can_share(counts.model(config).denoiser)

        def seconds(step: CountedStep, shared: bool = shared) -> float:
            return sum(seconds_predicted(step, figures, threads, shared).values())

        predicted = Predicted(counts, seconds, peak, memory, threads if shared else 1)
        config, reasons = choose_size(images, budget(hours, "fp32"), GIVEN, predicted.speed)
        found = predicted.reached(config, hours)
        yield {"machine": "predicted", "hours": hours, "how": "predicted", **found, **told(reasons, predicted.timed)}


def chosen(config: pd.Config, model: Model) -> dict[str, Any]:
    network = config.network
    return {"parameters": model.parameters, "width": network.width, "blocks": network.blocks, "batch": config.batch}


def told(reasons: list[str], timed: list[Network]) -> dict[str, Any]:
    """Return the reasons as they are printed, besides the number of epochs, and the networks that were timed."""
    said = [reason for reason in reasons if not reason.startswith("epochs")]
    return {"reasons": said, "timed": [[network.width, network.blocks] for network in timed]}


if __name__ == "__main__":
    main()
