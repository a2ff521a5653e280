"""How fast could a preset be on a GPU? Kernels, bytes and operations of a step, and the speed they predict.

    python benchmarks/roofline.py --gpu h200 [--presets small ddpmpp-64] [--side 64] [--batch 128]
    python benchmarks/roofline.py --out FILE.json [--presets small dit-small] [--side 64]

With ``--gpu`` nothing is measured: the kernels of training steps and of sampling are counted (see `kernels.py`), and a
data sheet predicts how long they take, see `patch_diffusion.doctor.roofline`. `all` shows every GPU of the table. A GPU
that has no bf16 is predicted with fp16 in its place.

Without it, this processor's own figures predict the images a second of training, and training is measured beside that.
`processor.py` says which figures those are, and how each is measured. They are the same for all presets: rates of
products, convolutions and attention, rates at which memory is moved, and the overhead of an operation. A step is then
predicted as follows.

- Threads that share a batch run forward and backward passes of the images of one of them, with figures of one thread
  that were measured while all threads compute. Their gradients are added. The other phases take one thread alone, but
  Muon shares its products.
- Networks with dropout are not shared: all threads run each operation together, with figures measured so.
- The next batch is made meanwhile, by a thread that takes its part of the processor.

Steps of each patch size are measured as they come, and rare ones by themselves at the end. Images a second are those of
the median step of each size, each as often as training takes it. Both are for the CPU and float32.
"""

import argparse
import gc
import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import circumstances
from processor import Processor, measure
from throughput import rate_of_products

import patch_diffusion as pd
from patch_diffusion.denoise.threads import can_share
from patch_diffusion.doctor.counting import CountedStep, count_evaluation, count_steps
from patch_diffusion.doctor.kernels import Kernel
from patch_diffusion.doctor.machines import MACHINES
from patch_diffusion.doctor.roofline import predict
from patch_diffusion.patches.schedule import PatchSize
from patch_diffusion.training.build import build_trainer
from patch_diffusion.training.trainer import Trainer

SMALL = ("small", "ncsnpp-small", "adm-small", "dit-small")
LARGE = ("ddpmpp-64", "ncsnpp-64", "adm-64")
BATCH_ON_CPU = 2  # of the large networks
LARGEST = 128  # of the batches on a GPU: the published ones are for eight GPUs and more
SECONDS, LEAST = 10, 3  # for which, and how many, steps of a size are measured
AT_ONCE, EVALUATIONS = 64, 35  # images that are sampled together; of 18 steps of Heun's method


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--presets", nargs="+", default=(*SMALL, *LARGE), choices=pd.PRESETS)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, help="whole images in a step; the preset's where not given")
    parser.add_argument("--gpu", choices=(*MACHINES, "all"), help="predict for this GPU, and measure nothing")
    parser.add_argument("--formats", nargs="+", default=("fp32", "bf16"), choices=("fp32", "bf16"), help="on a GPU")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = on_gpus(arguments) if arguments.gpu else on_this_processor(arguments)
    if arguments.out:
        settings = {name: value for name, value in vars(arguments).items() if name != "out"}
        arguments.out.write_text(json.dumps({**circumstances(), "settings": settings, **rows}, indent=1) + "\n")


def on_gpus(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print and return predictions for GPUs, from counts alone."""
    names = MACHINES if arguments.gpu == "all" else [arguments.gpu]
    shape, rows = (arguments.side, arguments.side), []
    print("Predicted, not measured. Kernels, GB and TFLOP are those of a training step.")
    print(f"{'':29}{'':6}{'':6}{'':6}      images/s")
    print(f"{'preset':18}{'GPU':10}{'kernels':>7}{'GB':>6}{'TFLOP':>6}{'trained':>8}{'sampled':>8}{'used':>6} bound by")
    for preset in arguments.presets:
        for number_format in arguments.formats:
            config = config_of(preset, arguments.batch, LARGEST, number_format)
            steps = count_steps(config, shape)
            evaluation = count_evaluation(config, shape, AT_ONCE)
            for name in names:
                machine = MACHINES[name]
                found = [(step.size.probability, step.num, predict(step.kernels, machine)) for step in steps]
                seconds = sum(share * each.seconds for share, _, each in found)
                totals = [(step.size.probability, asdict(step.kernels.total())) for step in steps]
                total = {key: sum(share * each[key] for share, each in totals) for key in totals[0][1]}
                row = {
                    "preset": preset,
                    "format": number_format,
                    "gpu": name,
                    "batch": config.batch,
                    **total,
                    "predicted_images_per_second": sum(share * num for share, num, _ in found) / seconds,
                    "predicted_utilisation": sum(s * each.utilisation * each.seconds for s, _, each in found) / seconds,
                    "predicted_sampled_per_second": AT_ONCE / predict(evaluation, machine).seconds / EVALUATIONS,
                    "bound": max(found, key=lambda each: each[0] * each[2].seconds)[2].bound,
                }
                rows.append(row)
                print(
                    f"{preset:13}{number_format:5}{machine.name:11}{row['launches']:6,.0f}"
                    f"{(row['read'] + row['written']) / 1e9:6.4g}{row['operations'] / 1e12:6.4g}"
                    f"{row['predicted_images_per_second']:8,.0f}{row['predicted_sampled_per_second']:8,.1f}"
                    f"{row['predicted_utilisation']:6.1%} {row['bound']}"
                )
    return {"predicted": rows}


def on_this_processor(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print and return the predicted and the measured speed of training on the CPU."""
    threads, rows = torch.get_num_threads(), []
    began = time.perf_counter()
    figures = {"alone": measure(1, split=True)}
    figures["shared"] = measure(threads, split=False) if threads > 1 else figures["alone"]
    figures["split"] = measure(threads, split=True) if threads > 1 else figures["alone"]
    peak = rate_of_products(torch.device("cpu"), torch.float32)
    print(f"measured this processor in {time.perf_counter() - began:.0f} s: products {peak / 1e9:,.0f} GFLOP/s")
    print(f"{'':15}{'images/s':>22}{'':>7}{'utilisation':>22}")
    print(f"{'preset':15}{'predicted':>11}{'measured':>11}{'ratio':>7}{'predicted':>11}{'measured':>11}")
    for preset in arguments.presets:
        config = config_of(preset, arguments.batch, BATCH_ON_CPU if preset not in SMALL else LARGEST, "fp32")
        row = of_preset(preset, config, arguments.side, figures, threads, peak)
        rows.append(row)
        print(
            f"{preset:15}{row['predicted_images_per_second']:11,.2f}{row['measured_images_per_second']:11,.2f}"
            f"{row['ratio']:7.2f}{row['predicted_utilisation']:11.1%}{row['measured_utilisation']:11.1%}",
            flush=True,
        )
    worst = max(abs(row["ratio"] - 1) for row in rows)
    print(f"The worst prediction is {worst:.0%} off.")
    return {
        "product_flops_per_second": peak,
        "figures": {name: asdict(figure) for name, figure in figures.items()},
        "rows": rows,
    }


def config_of(preset: str, batch: int | None, most: int, number_format: Any) -> pd.Config:
    config = pd.PRESETS[preset]
    assert isinstance(config.batch, int)
    engine = replace(config.engine, precision=number_format)
    chosen = batch or min(config.batch, most)
    pixels = None if batch else config.batch_pixels
    return replace(config, batch=chosen, batch_pixels=pixels, engine=engine, minutes=None, images=None, samples=0)


def of_preset(
    preset: str, config: pd.Config, side: int, figures: dict[str, Processor], threads: int, peak: float
) -> dict[str, Any]:
    """Predict, then measure the images a second of a preset."""
    images = torch.randint(0, 256, (256, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(config, pd.ImageSet(images), Path(folder) / "run", show=False)
        shared = threads > 1 and can_share(trainer.state.denoiser)
        steps = count_steps(trainer.config, (side, side), threads=threads if shared else 1)
        predicted = {str(step.size): seconds_predicted(step, figures, threads, shared) for step in steps}
        with trainer.engine.threads(trainer.state.denoiser):
            measured = seconds_measured(trainer)
        flops = trainer.flops
    del trainer
    gc.collect()
    taken = sum(step.size.probability * step.num for step in steps)
    operations = sum(step.size.probability * step.num * flops[step.size.shape] for step in steps)

    def mean(seconds: dict[str, float]) -> float:
        return sum(step.size.probability * seconds[str(step.size)] for step in steps)

    whole = {size: sum(each.values()) for size, each in predicted.items()}
    return {
        "preset": preset,
        "batch": config.batch,
        "shared": shared,
        "sizes": [
            {
                "size": str(step.size),
                "images": step.num,
                "predicted_seconds": whole[str(step.size)],
                "measured_seconds": measured[str(step.size)],
                "predicted_seconds_by_phase": predicted[str(step.size)],
            }
            for step in steps
        ],
        "predicted_images_per_second": taken / mean(whole),
        "measured_images_per_second": taken / mean(measured),
        "ratio": mean(measured) / mean(whole),
        "predicted_utilisation": operations / mean(whole) / peak,
        "measured_utilisation": operations / mean(measured) / peak,
    }


def seconds_predicted(step: CountedStep, figures: dict[str, Processor], threads: int, shared: bool) -> dict[str, float]:
    """Return the predicted seconds of the phases of a step."""
    found: dict[str, float] = {}
    for kernel, times in step.kernels.found.items():
        passes = kernel.phase in ("forward", "backward")
        way = "split" if not shared else "shared" if passes else "alone"
        seconds = times * figures[way].seconds(kernel)
        if kernel.phase == "batch":
            # Meanwhile, by a thread that takes its part of the processor; it makes the images of all threads.
            seconds *= 1 if shared else 1 / threads
        if shared and kernel.phase == "optimizer" and kernel.kind == "product":
            seconds /= threads
        found[kernel.phase] = found.get(kernel.phase, 0.0) + seconds
    if shared:
        clipped = next(kernel for kernel in step.kernels.found if kernel.operation == "_foreach_norm")
        gradients = Kernel("add", "_foreach_add_", "list", 1, clipped.tensors, 2 * clipped.read, clipped.read, 0)
        found["adding"] = (threads - 1) * figures["alone"].seconds(gradients)
    return found


def seconds_measured(trainer: Trainer) -> dict[str, float]:
    """Return the median seconds of a step of each size."""
    sizes = trainer.schedule.sizes_for(trainer.images.resolution, trainer.state.denoiser.stride)
    found: dict[str, list[float]] = {str(size): [] for size in sizes}

    def take() -> None:
        began = time.perf_counter()
        size, _ = trainer.train_step(0.5)
        found[str(size)].append(time.perf_counter() - began)

    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        take()
    for size in sizes:
        while len(found[str(size)]) <= LEAST:
            counters = trainer.state.counters
            while (
                trainer.schedule.size_at(counters.step, trainer.images.resolution, 0.5, trainer.state.denoiser.stride)
                != size
            ):
                counters.step += 1
            take()
    # The first step of a size also prepares what the next ones find.
    return {size: median(seconds[1:]) for size, seconds in found.items()}


def size_of_next(trainer: Trainer) -> PatchSize:
    step, stride = trainer.state.counters.step, trainer.state.denoiser.stride
    return trainer.schedule.size_at(step, trainer.images.resolution, 0.5, stride)


if __name__ == "__main__":
    main()
