"""Is a budget of minutes one of training, and is it the same training in `train` and in a race?

    python benchmarks/minutes.py --data CATS.zip [--resolution 32] [--minutes 3] [--out FILE.json]

It runs the commands `train --minutes N` and `race --minutes N --tune 0` with the preset ``small``. The wall time from
the first step to the last is that between two lines of the log of each step, as they are written.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import circumstances


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True)
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = [arguments.data, "--preset", "small", "--resolution", str(arguments.resolution)]
        options += ["--minutes", str(arguments.minutes)]
        trained = train(options, Path(folder) / "run")
        raced = race(options, Path(folder) / "race")
    found = {**trained, "race": raced, "steps_to_race": trained["steps"] / raced["steps"]}
    print(json.dumps(found, indent=1))
    if arguments.out:
        settings = {"preset": "small", "minutes": arguments.minutes, "resolution": arguments.resolution, "seed": 0}
        settings["data"] = Path(arguments.data).name
        arguments.out.write_text(json.dumps({**circumstances(), "settings": settings, **found}, indent=1) + "\n")


def train(options: list[str], out: Path) -> dict[str, Any]:
    """Train, and see by the wall clock when the first step was taken and the last."""
    command = [*COMMAND, "train", *options, "--out", str(out), "--log-every", "1"]
    running = subprocess.Popen(command)
    log, first, last, size = out / "log.jsonl", 0.0, 0.0, 0
    while running.poll() is None:
        time.sleep(0.02)
        grown = log.stat().st_size if log.exists() else 0
        if grown > size and '"loss"' in log.read_text(encoding="utf-8")[size:]:
            last = time.monotonic()
            first = first or last
        size = max(grown, size)
    if running.returncode:
        sys.exit(running.returncode)
    found = json.loads(subprocess.run([*COMMAND, "info", str(out), "--json"], check=True, capture_output=True).stdout)
    spent = found["time"]
    training = spent["steps"] + spent["data"] + spent["saves"]
    return {
        "steps": found["progress"]["step"],
        "minutes_from_first_step_to_last": (last - first) / 60,
        "share_in_steps": spent["steps"] / (training + spent["evaluation"]),
        "share_in_steps_of_training": spent["steps"] / training,
        "seconds": spent,
    }


def race(options: list[str], out: Path) -> dict[str, Any]:
    """Race with the same options, untuned; return the steps of the arm of patches, and what the race took besides."""
    began = time.monotonic()
    command = [*COMMAND, "race", *options, "--out", str(out), "--tune", "0", "--json"]
    content = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    took = time.monotonic() - began
    ends = {name: points["0"][-1] for name, points in content["points"].items()}
    return {
        "steps": ends["patches"]["step"],
        "minutes_of_training": sum(end["seconds"] for end in ends.values()) / 60,
        "minutes_of_the_command": took / 60,
        "judged_by": content["judged_by"],
        "loss": {name: end["loss"] for name, end in ends.items()},
    }


COMMAND = [sys.executable, "-m", "patch_diffusion"]

if __name__ == "__main__":
    main()
