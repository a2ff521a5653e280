"""What a result file says beside the figures."""

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def circumstances() -> dict[str, Any]:
    """Command, commit and hardware."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "--", "../src"], capture_output=True, text=True).stdout
    return {
        "command": f"python benchmarks/{Path(sys.argv[0]).name} " + " ".join(sys.argv[1:]),
        "commit": commit + " and changes that are not committed" * bool(changed.strip()),
        "hardware": hardware(),
        "torch": torch.__version__,
    }


def hardware() -> str:
    """The GPU, or the processor and how many of its threads torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name}, {torch.get_num_threads()} threads"
