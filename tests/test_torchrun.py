"""Runs whose processes were started by torchrun, or by anything that sets its variables, on CPU."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch.distributed as dist

import patch_diffusion as pd
from patch_diffusion.cli import main
from patch_diffusion.processes import explain_lost_peer

pytestmark = pytest.mark.slow

OPTIONS = [
    *("--batch", "4", "--samples", "0", "--log-every", "1", "--resolution", "8", "--patches.sizes", "1/2=1"),
    *("--checkpoints", "1"),
    *("--engine.device", "cpu", "--engine.threads", "1"),
    *("--network.width", "8", "--network.multipliers", "1", "2", "--network.attention", "1"),
]
# The command line, but it gives up one that does not answer after three seconds instead of ten minutes.
IMPATIENT = (
    "import datetime, sys; from patch_diffusion.training.hardware import group; "
    "group.GIVEN_UP_AFTER = datetime.timedelta(seconds=3); from patch_diffusion.cli import main; sys.exit(main())"
)
GONE = "another process of this run is gone or does not answer"


def start(command, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def torchrun(*words):
    return start(["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "patch_diffusion", "train", *words])


def pair(*outs, command=("-m", "patch_diffusion"), steps=100_000):
    """Two processes as SLURM's srun or two machines would start them, one for each folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = [*command, "train", "digits", *OPTIONS, "--steps", str(steps), "--out"]
    return [
        start(
            [*words, str(out)],
            RANK=str(rank),
            LOCAL_RANK="0",
            WORLD_SIZE=str(len(outs)),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank, out in enumerate(outs)
    ]


def wait_for_a_step(out, *processes):
    deadline = time.monotonic() + 180
    while not (out / "log.jsonl").exists() or '"loss"' not in (out / "log.jsonl").read_text():
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.1)


def test_a_mistake_is_told_once_and_fails(tmp_path):
    process = torchrun("digits", *OPTIONS, "--batch", "1", "--out", str(tmp_path / "run"))
    out, err = process.communicate(timeout=180)
    assert process.returncode == 1 and out == ""
    assert err.count("a batch of 1 cannot be shared out to 2 processes") == 1
    assert "src/patch_diffusion" not in err  # torchrun's own traceback, not ours
    assert not (tmp_path / "run").exists()


@pytest.mark.scheduled
def test_sigterm_saves_and_the_run_continues_under_torchrun(tmp_path):
    run = tmp_path / "run"
    process = torchrun("digits", *OPTIONS, "--steps", "100000", "--out", str(run))
    wait_for_a_step(run, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=180)
    assert err.count("patch-diffusion train: interrupted; continue with") == 1 and "src/patch_diffusion" not in err
    (saved,) = (run / "checkpoints").iterdir()
    step = int(saved.name[5:])

    process = torchrun("--out", str(run), "--steps", str(step + 2), "--json")
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0 and err.count(f"continuing after step {step:,}") == 1
    assert json.loads(out)["complete"]  # the result, told once
    assert (run / "checkpoints" / f"step-{step + 2:08d}").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.scheduled)])
def test_a_lost_process_ends_the_others_with_one_line(tmp_path, number):
    first, second = pair(tmp_path / "run", tmp_path / "run", command=["-c", IMPATIENT])
    wait_for_a_step(tmp_path / "run", first, second)
    second.send_signal(number)
    try:
        _, err = first.communicate(timeout=180)
    finally:
        second.kill()
        second.communicate()
    assert first.returncode == 1 and err.count(GONE) == 1 and "Traceback" not in err
    assert err.splitlines()[-1].endswith("with as many processes as there are")


@pytest.mark.scheduled
def test_the_others_wait_for_looks_that_take_long(tmp_path):
    """Longer than after which one that does not answer is given up."""
    slow = IMPATIENT.replace(
        "sys.exit(main())",
        "from patch_diffusion.training import loop; import time; "
        "loop.held_out_loss = lambda trainer, spent: time.sleep(5) if trainer.engine.group.is_main else None; "
        "sys.exit(main())",
    )
    first, second = pair(tmp_path / "run", tmp_path / "run", command=["-c", slow], steps=2)
    for process in (first, second):
        _, err = process.communicate(timeout=180)
        assert process.returncode == 0, err
    assert (tmp_path / "run" / "checkpoints" / "step-00000002").exists()


def test_one_that_never_starts_is_told_too(tmp_path):
    (process,) = pair(tmp_path / "run", command=["-c", "import os; os.environ['WORLD_SIZE'] = '2'; " + IMPATIENT])
    _, err = process.communicate(timeout=180)
    assert process.returncode == 1 and err.count(GONE) == 1 and "Traceback" not in err


@pytest.mark.scheduled
def test_machines_that_do_not_share_the_folder_are_refused(tmp_path):
    assert main(["train", "digits", *OPTIONS, "--steps", "2", "--out", str(tmp_path / "run")]) == 0
    before = sorted((tmp_path / "run").rglob("*"))
    processes = pair(tmp_path / "run", tmp_path / "another", steps=4)
    for process in processes:
        _, err = process.communicate(timeout=180)
        assert process.returncode == 1 and "some processes would continue after step 0 and others after step 2" in err
    assert sorted((tmp_path / "run").rglob("*")) == before


def test_only_errors_of_the_network_are_taken_for_a_lost_process():
    with pytest.raises(RuntimeError, match="of the network's own"), explain_lost_peer():
        raise RuntimeError("an error of the network's own")
    with pytest.raises(pd.InputError, match=r"does not answer \(1/2 clients joined\): "), explain_lost_peer():
        raise dist.DistStoreError("1/2 clients joined.\nmore")
    closed = r"does not answer \(Connection closed by peer \[10\.0\.0\.2\]:7\): "
    with pytest.raises(pd.InputError, match=closed), explain_lost_peer():
        raise RuntimeError("[/x/gloo/tcp/pair.cc:5] Connection closed by peer [10.0.0.2]:7. This is typically")
