"""Several processes that share the batches of one run, on CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion import processes
from patch_diffusion.config import Config, Data, Engine, Network, Optimizer, Patches
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.objective import Batch, DenoisingObjective
from patch_diffusion.files import read_tensors
from patch_diffusion.processes import run_processes
from patch_diffusion.training.hardware.engine import Engine as Process
from refusal import refused

SMALL = Config(
    data=Data("digits", resolution=8),
    network=Network(width=8, multipliers=(1, 2), blocks=1, attention=(1,), dropout=0.0),
    patches=Patches(sizes={"1/2": 1.0}),
    optimizer=Optimizer(learning_rate=1e-3),
    engine=Engine(device="cpu", threads=1),
    batch=6,
    steps=6,
    samples=0,
    checkpoints=1,
    log_every=1,
)


def losses(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def train(folder, **engine):
    pd.train(replace(SMALL, engine=replace(SMALL.engine, **engine)), folder, show=False)
    return losses(folder), read_tensors(folder / "model.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(tmp_path_factory.mktemp("alone") / "run")


def assert_equal(found, expected):
    """The same sizes at every step, losses to 1e-5, weights to a little more."""
    assert [list(line) for line in found[0]] == [list(line) for line in expected[0]]
    for one, two in zip(found[0], expected[0], strict=True):
        assert one == pytest.approx(two, rel=1e-5)
    for key, tensor in expected[1].items():
        torch.testing.assert_close(found[1][key], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_processes_equal_one_with_the_joined_batch(alone, tmp_path):
    """Four of them, which have not all as many of the six samples."""
    assert_equal(train(tmp_path / "run", processes=4), alone)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_weights_are_learned_from_the_losses_of_all_processes(tmp_path):
    learned = replace(SMALL, noise=replace(SMALL.noise, weight="learned"), steps=12)
    found = []
    for name, engine in (("one", {}), ("two", {"processes": 2}), ("parts", {"accumulation": 3})):
        pd.train(replace(learned, engine=replace(SMALL.engine, **engine)), tmp_path / name, show=False)
        found.append((losses(tmp_path / name), read_tensors(tmp_path / name / "model.safetensors")))
    assert_equal(found[1], found[0])
    assert_equal(found[2], found[0])


@pytest.mark.slow
def test_accumulation_changes_nothing_but_memory(alone, tmp_path):
    assert_equal(train(tmp_path / "run", accumulation=4), alone)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_run_of_two_processes_continues_with_one(alone, tmp_path):
    half = replace(SMALL, steps=3, optimizer=replace(SMALL.optimizer, decay="constant", warmup=0.0))
    whole = replace(half, steps=6)
    pd.train(whole, tmp_path / "whole", show=False)
    pd.train(replace(half, engine=replace(SMALL.engine, processes=2)), tmp_path / "run", show=False)
    pd.train(whole, tmp_path / "run", show=False)
    found, expected = losses(tmp_path / "run"), losses(tmp_path / "whole")
    assert len(found) == 6
    for one, two in zip(found, expected, strict=True):
        assert one == pytest.approx(two, rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_what_goes_wrong_in_a_process_is_one_line(tmp_path):
    with refused("batch"):
        pd.train(replace(SMALL, batch=1, engine=replace(SMALL.engine, processes=2)), tmp_path / "run", show=False)
    assert not (tmp_path / "run").exists()
    with refused("engine.processes"):
        pd.train(replace(SMALL, engine=replace(SMALL.engine, processes=0)), tmp_path / "run", show=False)


@pytest.mark.slow
def test_sigterm_saves_in_all_processes(tmp_path):
    out = tmp_path / "run"
    options = "--engine.processes 2 --steps 100000 --batch 4 --samples 0 --resolution 8 --engine.device cpu"
    options += " --network.width 8 --network.multipliers 1 2 --network.attention 1 --patches.sizes 1/2=1"
    command = [sys.executable, "-m", "patch_diffusion", "train", "digits", "--out", str(out), *options.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 120
    while not (out / "log.jsonl").exists() or "loss" not in (out / "log.jsonl").read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "continue with: patch-diffusion train --out" in err
    assert "Traceback" not in err
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names[-1] > "step-00000000" and not any("tmp" in name for name in names)


def test_parts_cover_every_sample_once():
    for world, accumulation, num in [(1, 1, 5), (1, 3, 7), (2, 2, 9), (3, 1, 8)]:
        seen = []
        for rank in range(world):
            process = object.__new__(Process)
            process.group, process.accumulation = SimpleNamespace(rank=rank, world=world), accumulation  # pyright: ignore[reportAttributeAccessIssue]
            parts = process.microbatches(num)
            assert len(parts) == accumulation and min(map(len, parts)) >= 1
            seen += [slot for part in parts for slot in part]
        assert seen == list(range(num))


@pytest.mark.slow
def test_bf16_on_cpu_is_close_to_fp32(alone, tmp_path):
    found, _ = train(tmp_path / "run", precision="bf16")
    assert found != alone[0]
    for one, two in zip(found, alone[0], strict=True):
        assert one == pytest.approx(two, rel=0.05)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"precision": "fp16"}, "engine.precision"),
        ({"accumulation": 0}, "engine.accumulation"),
        ({"accumulation": 7}, "batch"),
        ({"threads": 0}, "engine.threads"),
    ],
)
def test_impossible_options_are_refused(tmp_path, options, option):
    with refused(option):
        train(tmp_path / "run", **options)


@pytest.mark.scheduled
def test_the_loss_is_one_graph_for_each_size():
    """What engine.compile asks for: no graph breaks, and no recompilation when a size comes again."""
    torch._dynamo.reset()
    loss = DenoisingObjective(pd.Denoiser(pd.UNet(3, 8, (1, 2), 1, dropout=0.0)))
    loss.compile(dynamic=False, backend="aot_eager", fullgraph=True)
    torch._dynamo.utils.counters.clear()
    for _ in range(2):
        for size in (8, 16):
            clean = torch.randn(2, 3, size, size)
            coords = pd.coordinate_grid(size, size).expand(2, -1, -1, -1)
            loss(Batch(clean, torch.ones(2), torch.randn_like(clean), Conditions(coords))).sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    torch._dynamo.reset()


def test_a_clip_of_nothing_is_refused(make_trainer):
    with refused("optimizer.clip"):
        make_trainer("other", optimizer=Optimizer(clip=0.0))


def test_no_room_for_what_processes_share_is_one_line(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multiprocessing.context.SpawnContext.SimpleQueue", full)
    with pytest.raises(pd.InputError, match=r"cannot be started \(No space left on device\): make room in /dev/shm"):
        run_processes(2, print)


def test_processes_of_a_machine_share_its_cores(monkeypatch):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        monkeypatch.setenv(name, "")  # to be undone
    found = {}
    processes._one_process(1, 4, 1234, None, lambda: found.update({name: os.environ[name] for name in names}), ())
    assert found["LOCAL_WORLD_SIZE"] == found["WORLD_SIZE"] == "4" and found["LOCAL_RANK"] == "1"

    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("patch_diffusion.training.hardware.engine.cores", lambda: 8)
    try:
        Process(Engine(device="cpu"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are not bound to cores here")
def test_cores_are_those_that_a_process_may_use():
    allowed = os.sched_getaffinity(0)
    assert processes.cores() == len(allowed)
    os.sched_setaffinity(0, [min(allowed)])
    try:
        assert processes.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
