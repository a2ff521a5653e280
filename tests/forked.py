"""Processes of `run_processes` that are forked from one that has imported torch, instead of each importing it anew.

The one they are forked from is as fresh as a spawned one: it is started once in each process of the tests, and imports
what every run imports. `test_processes.py` and `test_torchrun.py` have tests of processes as a user starts them.
"""

import multiprocessing
import os
import sys
from pathlib import Path

from torch.multiprocessing.spawn import start_processes

METHOD = "forkserver" if sys.platform == "linux" else "spawn"  # elsewhere libraries do not bear to be forked
multiprocessing.set_forkserver_preload(
    ["torch._dynamo", "torch.distributed", "patch_diffusion.training.build", "patch_diffusion.evaluation.processes"]
)


def start(function, arguments, num, **options):
    """Start processes as torch does, with this environment and folder, which otherwise are those of the first start."""
    arguments = (function, dict(os.environ), Path.cwd(), *arguments)
    return start_processes(_here, arguments, num, **{**options, "start_method": METHOD})


def _here(rank, function, environment, folder, *arguments):
    os.environ.clear()
    os.environ |= environment
    os.chdir(folder)
    function(rank, *arguments)
