"""Kernels, bytes and operations of a training step, by phase and kind, of each preset.

    python benchmarks/kernels.py [--presets small ddpmpp-64] [--side 64] [--batch 8] [--optimizer muon] [--whole]
        [--by phase] [--precision fp32] [--names] [--out FILE.json]

Nothing is computed: the step runs on tensors without numbers, so that all presets take a minute. How kernels are
counted is said in `patch_diffusion.doctor.kernels`. A step is the mean over the preset's patch sizes, each as often as
training takes it.
"""

import argparse
import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

from measuring import circumstances

import patch_diffusion as pd
from patch_diffusion.doctor.counting import CountedStep, count_steps
from patch_diffusion.doctor.kernels import PHASES

KINDS = ("convolution", "product", "attention", "norm", "pointwise", "reduction", "copy", "random", "list", "other")
LARGEST = 128  # of the batches: the published ones are for eight GPUs and more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--presets", nargs="+", default=("small", "ddpmpp-64"), choices=pd.PRESETS)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, help="whole images in a step; the preset's where not given")
    parser.add_argument("--whole", action="store_true", help="whole images only, not the preset's patches")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), help="the preset's where not given")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--by", default="phase", choices=("phase", "kind"))
    parser.add_argument("--names", action="store_true", help="torch's operations, too, most kernels first")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for preset in arguments.presets:
        steps = count_steps(chosen(preset, arguments), (arguments.side, arguments.side))
        table = {name: mean_of(steps, **{arguments.by: name}) for name in (PHASES, KINDS)[arguments.by == "kind"]}
        table["all"] = mean_of(steps)
        rows += [{"preset": preset, arguments.by: name, **values} for name, values in table.items()]
        print(f"{preset}: {', '.join(f'{step.num} images of {step.size}' for step in steps)}")
        print(f"  {arguments.by:12} kernels      read   written  operations")
        for name, values in table.items():
            read, written, operations = values["read"] / 1e6, values["written"] / 1e6, values["operations"] / 1e9
            print(f"  {name:12} {values['launches']:7,.0f} {read:7,.0f}MB {written:7,.0f}MB {operations:10,.1f}G")
        if arguments.names:
            print("\n".join(f"  {count:7,.0f} {phase} {name}" for (phase, name), count in names(steps)))
    if arguments.out:
        settings = {name: value for name, value in vars(arguments).items() if name != "out"}
        arguments.out.write_text(json.dumps({**circumstances(), "settings": settings, "rows": rows}, indent=1) + "\n")


def chosen(preset: str, arguments: argparse.Namespace) -> pd.Config:
    config = pd.PRESETS[preset]
    batch = arguments.batch or min(config.batch if isinstance(config.batch, int) else LARGEST, LARGEST)
    optimizer = replace(config.optimizer, kind=arguments.optimizer or config.optimizer.kind)
    return replace(
        config,
        batch=batch,
        batch_pixels=None if arguments.batch else config.batch_pixels,
        optimizer=optimizer,
        engine=replace(config.engine, precision=arguments.precision),
        patches=replace(config.patches, whole=1.0) if arguments.whole else config.patches,
    )


def mean_of(steps: list[CountedStep], **which: str) -> dict[str, float]:
    """Of steps of all sizes, each as often as training takes it."""
    totals = [(step.size.probability, asdict(step.kernels.total(**which))) for step in steps]
    return {name: sum(share * total[name] for share, total in totals) for name in totals[0][1]}


def names(steps: list[CountedStep]) -> list[tuple[tuple[str, str], float]]:
    found: Counter[tuple[str, str]] = Counter()
    for step in steps:
        for kernel, times in step.kernels.found.items():
            found[kernel.phase, kernel.operation] += step.size.probability * times * kernel.launches  # pyright: ignore[reportArgumentType]
    return found.most_common()


if __name__ == "__main__":
    main()
