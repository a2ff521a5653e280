"""How soon is a mistake refused? A wrong path, option, run or command, each as the whole process.

    python benchmarks/refusals.py [--rounds 5] [--out FILE.json]

The goal is a median below a second: no refusal waits for torch to be imported. ``import torch`` alone, in the same
rounds, is there to compare with.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import circumstances

COMMAND = [sys.executable, "-m", "patch_diffusion"]
WITHOUT_A_LIBRARY = (
    "import sys; sys.modules['onnxruntime'] = None; from patch_diffusion.cli import main; sys.exit(main())"
)
MISTAKES = {
    "train, a wrong path": "train missing --resolution 64 --out runs/x",
    "train, a wrong option": "train digits --resolutoin 64 --out runs/x",
    "train, no run to continue": "train --out runs/missing",
    "inspect, a wrong path": "inspect missing",
    "prepare, a wrong path": "prepare missing x.zip --resolution 64",
    "race, a wrong path": "race missing --minutes 1 --out races/x",
    "sample, a wrong run": "sample runs/missing --out pictures",
    "sample, a wrong option": "sample runs/missing --seed 3 --out pictures",
    "evaluate, a wrong run": "evaluate runs/missing",
    "edit, a wrong image": "edit . missing.png --out pictures",
    "sample, wrong seeds": "sample runs/a --seeds a --out pictures",
    "sample, a wrong solver": "sample runs/a --solver x --out pictures",
    "sample, a folder of runs": "sample runs --out pictures",
    "edit, nothing to do": "edit runs/a image.png --out pictures",
    "evaluate, a wrong metric": "evaluate runs/a --metrics fid",
    "export, a folder in use": "export runs/a --to torch --out runs",
    "export, a library that is missing": "export runs/a --to onnx --out model",
    "train, labels that are not there": "train images --data.labels new.csv --out runs/x",
    "info, a wrong run": "info runs/missing",
    "export, a wrong run": "export runs/missing --to onnx --out model",
    "import, a wrong file": "import missing.pkl --out runs/x",
    "a wrong command": "trian digits",
    "help": "train --help",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    commands = {name: [*COMMAND, *line.split()] for name, line in MISTAKES.items()}
    commands["export, a library that is missing"][1:3] = ["-c", WITHOUT_A_LIBRARY]
    commands["import torch"] = [sys.executable, "-c", "import torch"]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "runs" / "a").mkdir(parents=True)
        (Path(folder) / "runs" / "a" / "config.json").write_text("{}")
        (Path(folder) / "images").mkdir()
        (Path(folder) / "image.png").write_bytes(b"")
        for number in range(arguments.rounds + 1):
            for name, command in commands.items():
                begun = time.perf_counter()
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ)
                if number:  # the first round fills the caches of the machine
                    seconds[name].append(time.perf_counter() - begun)
                if name not in ("help", "import torch") and (not done.returncode or done.stderr.count("\n") != 1):
                    sys.exit(f"{name}: status {done.returncode}, and it says {done.stderr}")
    found = {name: round(statistics.median(times), 3) for name, times in seconds.items()}
    print(json.dumps(found, indent=1))
    if arguments.out:
        content = {**circumstances(), "settings": {"rounds": arguments.rounds}, "seconds": found}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
