"""One run on the machines of a Ray cluster.

    python ray_train.py cats.zip /shared/runs/cats --workers 16 --gpu --images 50000000

Both paths are on a disk that all machines share. The same line continues a run that has stopped.
"""

import argparse
from typing import Any

import ray.train  # pyright: ignore[reportMissingImports]
from ray.train.torch import TorchTrainer  # pyright: ignore[reportMissingImports]

import patch_diffusion as pd
from patch_diffusion.config import Data


def worker(settings: dict[str, Any]) -> None:
    """What each process does; Ray has set the variables that torchrun would have set."""
    data = Data(source=settings["source"], resolution=settings["resolution"])
    pd.train(pd.Config(data=data, images=settings["images"]), settings["out"], show=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", help="an absolute path, or digits")
    parser.add_argument("out", help="the run folder, an absolute path")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true", help="a GPU for each worker")
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--images", type=int, required=True)
    arguments = parser.parse_args()
    names = ("source", "out", "resolution", "images")
    trainer = TorchTrainer(
        worker,
        train_loop_config={name: getattr(arguments, name) for name in names},
        scaling_config=ray.train.ScalingConfig(num_workers=arguments.workers, use_gpu=arguments.gpu),
        # A worker that is lost stops all; Ray starts them again, and the run continues from its checkpoint.
        run_config=ray.train.RunConfig(failure_config=ray.train.FailureConfig(max_failures=3)),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
