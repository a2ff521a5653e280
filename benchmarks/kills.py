"""Is a run that is killed at random moments, also while it saves, in the end the one that was left alone?

    python benchmarks/kills.py [--kills 50] [--processes 1] [--out FILE.json]

Digits, a small network, one thread a process; SIGKILL to all processes at once; compared bit for bit: weights,
averages, optimizer, counters, the model file, the log, the list of checkpoints.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from measuring import circumstances

from kills import differences, kill_and_continue, start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    steps = max(60, 4 * arguments.kills)
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "whole", Path(folder) / "killed"
        whole = start(runs[0], steps, arguments.processes)
        errors = whole.communicate()[1]
        if whole.returncode:
            raise SystemExit(errors)
        told = kill_and_continue(
            runs[1], kills=arguments.kills, steps=steps, seed=arguments.seed, processes=arguments.processes
        )
        found = differences(runs[1], runs[0])
    print(f"{told}; differences: {found or 'none'}")
    if arguments.out:
        settings = {"steps": steps, "processes": arguments.processes, "seed": arguments.seed}
        result = {**circumstances(), "settings": settings, **told, "differences": found}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
