"""How much memory do 50,000 features of 2,048 numbers take, from the first batch to the distance and its interval?

    python benchmarks/streaming_features.py [--num 50000] [--size 2048]

Random features, batch by batch, through the same code as those of samples; the peak of the whole process.
"""

import argparse
import resource
import sys
import time

import torch
from measuring import hardware

from patch_diffusion.evaluation.collect import collect
from patch_diffusion.evaluation.comparing import compare
from patch_diffusion.evaluation.distances import Gaussian, Moments
from patch_diffusion.evaluation.extractors.extractor import Extractor
from patch_diffusion.evaluation.stream import Stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--num", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=100)
    arguments = parser.parse_args()

    def part(number: int) -> list[torch.Tensor]:
        num = min(arguments.batch, arguments.num - number * arguments.batch)
        return [torch.zeros(num, 3, 8, 8, dtype=torch.uint8)]  # what the features are does not depend on them

    random = torch.Generator().manual_seed(1)

    def features(images: torch.Tensor) -> torch.Tensor:
        return torch.randn(len(images), arguments.size, generator=random)

    print(f"{hardware()}; at the start {peak():,.0f} MB")
    started = time.perf_counter()
    extractor = Extractor("random numbers", features)
    moments = Moments()
    stream = Stream(arguments.num, part, lambda places: [], batch=arguments.batch)
    for images in stream.batches():
        moments.add(extractor(images))
    reference: Gaussian = moments.gaussian()
    del moments
    tell("moments of the reference", started)
    collected = collect(stream, extractor, what="features")
    tell("moments of the groups", started)
    measures, _ = compare(["frechet"], collected, None, reference, "random numbers", 0)
    tell("distance and interval", started)
    measure = measures["frechet"]
    print(f"distance {measure.value:.3f}, interval {measure.low:.3f} to {measure.high:.3f}")


def peak() -> float:
    """Of this process, in MB."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used * (1 if sys.platform == "darwin" else 1024) / 1e6


def tell(what: str, started: float) -> None:
    print(f"{what}: {time.perf_counter() - started:.0f} s, peak {peak():,.0f} MB", flush=True)


if __name__ == "__main__":
    main()
