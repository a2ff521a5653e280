import os
import subprocess
import sys
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.cli.train import Train
from patch_diffusion.config import Engine
from patch_diffusion.errors import is_out_of_memory
from patch_diffusion.patches.schedule import PatchSize
from patch_diffusion.training.hardware import memory
from patch_diffusion.training.hardware.memory import advice_on_memory, explain_out_of_memory, microbatches_that_fit


class Hungry(torch.nn.Module):
    """A network that runs out of memory as a GPU does, above so many pixels at a time."""

    image_channels, most = 3, 10**9

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(5, 3, 1)

    def forward(self, x, c_noise, labels=None):
        if len(x) * x.shape[-1] * x.shape[-2] > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return self.conv(x)


@pytest.fixture
def hungry(images, tmp_path):
    def make(batch, **options):
        schedule = pd.PatchSchedule(sizes={"1/2": 1.0})
        return pd.Trainer(
            pd.Denoiser(Hungry(), 0.5),
            images,
            schedule,
            out=tmp_path / "run",
            batch=batch,
            samples=0,
            show=False,
            **options,
        )

    return make


@pytest.fixture
def tried_out(monkeypatch):
    """As on a GPU, where what fits is tried out."""

    def most(demand, size, wanted):
        return memory._largest(lambda num: memory._passes(demand, size.shape, num), wanted)

    monkeypatch.setattr(memory, "most_at_a_time", most)


def test_a_whole_image_takes_what_the_patches_in_its_place_do(monkeypatch):
    monkeypatch.setattr(memory, "memory_of_image", lambda _, shape: {(8, 8): 60, (16, 16): 100}[shape])
    halves, whole = PatchSize((8, 8), 0.5, 5.0, 1.0), PatchSize((16, 16), 0.5, 1.0, 1.0)
    assert memory.memory_of_whole_image(SimpleNamespace(sizes=[halves, whole])) == 300
    assert memory.memory_of_whole_image(SimpleNamespace(sizes=[whole])) == 100
    assert memory.most_images(100, 10, 10**4) == (memory._USED * 10**4 - 100) // (memory.WORKSPACE * 10)
    assert memory.most_images(10**6, 10, 10**4) == 0


@pytest.mark.slow
def test_a_step_that_runs_out_of_memory_says_what_fits(hungry, tried_out, monkeypatch):
    trainer = hungry(64)
    monkeypatch.setattr(Hungry, "most", 50 * 8 * 12)  # fifty whole images, or two hundred halves
    with pytest.raises(
        pd.InputError, match=r"out of memory at a batch of 64: the largest that fits is 50; give --engine.accum"
    ):
        trainer.fit(steps=8)
    fits = hungry(50, allow=["batch"])
    fits.fit(steps=8)
    assert fits.state.counters.step == 8


def test_what_fits_by_itself_is_not_the_batch_s_fault(hungry, tried_out):
    assert "does another process take the memory?" in advice_on_memory(hungry(4).demand(), "CUDA out of memory.")


def test_where_nothing_fits(hungry, tried_out, monkeypatch):
    monkeypatch.setattr(Hungry, "most", 8 * 12 - 1)
    with pytest.raises(pd.InputError, match="does not take a single image of 8x12: give a smaller --network.width"):
        hungry(4, engine=Engine(accumulation="auto"))


def test_auto_takes_the_fewest_parts(hungry, tried_out, monkeypatch):
    monkeypatch.setattr(Hungry, "most", 20 * 8 * 12)
    trainer = hungry(64, engine=Engine(accumulation="auto"))
    assert trainer.engine.accumulation == 4 and trainer.config.engine.accumulation == 4
    trainer.fit(steps=4)


def test_on_a_cpu_it_is_reckoned(make_trainer, monkeypatch):
    trainer = make_trainer(batch=32)
    assert microbatches_that_fit(trainer.demand()) == 1
    per_image = memory.memory_of_image(trainer.demand(), (8, 12))
    of_weights = memory.memory_of_weights(trainer.state.network)
    room = (memory.WORKSPACE * 10.5 * per_image + of_weights) / memory._USED
    monkeypatch.setattr(memory, "memory_of", lambda device: int(room))
    assert microbatches_that_fit(trainer.demand()) == 4  # ten at a time
    parts = make_trainer(batch=64, out="parts", engine=Engine(accumulation="auto"))
    assert parts.engine.accumulation == 7
    assert make_trainer(batch="auto", out="auto").config.engine.accumulation == 1


def test_the_advice_names_recompute_where_it_helps(make_trainer, monkeypatch):
    """Not of a network that cannot, or does so already."""
    trainer = make_trainer(batch=32)
    demand = trainer.demand()
    for most, words in ((4, "in parts, --engine.recompute, which keeps"), (0, "4x6: give --engine.recompute, which")):
        monkeypatch.setattr(memory, "most_at_a_time", lambda *_, most=most: most)
        assert words in advice_on_memory(demand, "out of memory")
    assert "accumulation, --engine.recompute, which" in advice_on_memory(replace(demand, sharded=True), "out of memory")
    trainer.state.network.recompute = True
    for sharded in (False, True):
        assert "recompute" not in advice_on_memory(replace(demand, sharded=sharded), "out of memory")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of a process from /proc")
@pytest.mark.scheduled
def test_memory_of_an_image_is_what_a_process_takes():
    """Within a quarter, with blocks that are computed again too: what is kept for backward alone was half of it.

    Every tensor is given back to the system, as the allocator of small ones keeps some in between.
    """
    found = subprocess.run(
        [sys.executable, "-c", MEASURED],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},
    )
    rows = [tuple(map(float, line.split())) for line in found.stdout.splitlines()]
    assert len(rows) == 4
    for reckoned, measured in rows:
        assert reckoned == pytest.approx(measured, rel=0.25), rows
    assert rows[1][0] < 0.5 * rows[0][0] and rows[3][0] < 0.5 * rows[2][0]


MEASURED = """
import re
from pathlib import Path
from types import SimpleNamespace
import torch
import patch_diffusion as pd
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.objective import Batch, DenoisingObjective
from patch_diffusion.training.hardware.memory import memory_of_image

torch.set_num_threads(1)
SIDE = 32

def bytes_of(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))

for network in (pd.UNet(3, 16, (1, 2), 2), pd.DiT(3, 64, 4, 4)):
    for network.recompute in (False, True):
        objective = DenoisingObjective(pd.Denoiser(network)).train()

        def loss(shape, num):
            clean = torch.zeros(num, 3, *shape)
            conditions = Conditions(pd.coordinate_grid(*shape).expand(num, -1, -1, -1))
            return objective.forward(Batch(clean, torch.ones(num), clean, conditions)).sum()

        def peak(num):
            before = bytes_of("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
            torch.autograd.grad(loss((SIDE, SIDE), num), list(network.parameters()), allow_unused=True)
            return bytes_of("VmHWM") - before

        reckoned = memory_of_image(SimpleNamespace(network=network, loss=loss), (SIDE, SIDE))
        peak(2)
        print(reckoned, (peak(40) - peak(8)) / 32)
"""


def test_the_command_takes_the_preset_s_batch(tmp_path):
    options = Train.parse(["digits", "--out", str(tmp_path), "--preset", "digits", "--batch", "auto"]).options
    assert options.batch == pd.PRESETS["digits"].batch and options.engine.accumulation == "auto"
    options = Train.parse(["digits", "--out", str(tmp_path), "--preset", "small", "--batch", "auto"]).options
    assert options.batch == pd.PRESETS["small"].batch and options.engine.accumulation == "auto"


def test_other_errors_are_not_taken_for_it(make_trainer, monkeypatch):
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(pd.InputError("MPS backend out of memory"))
    trainer = make_trainer()
    monkeypatch.setattr(trainer, "train_step", lambda spent: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        trainer.fit(steps=1)


def test_what_the_failed_step_held_is_free_when_it_is_tried_what_fits(hungry, monkeypatch):
    """Its tensors were held by the frames of the error, so that hardly anything fitted: also those of its causes."""
    trainer, held, found = hungry(4), [], []

    def keep(*values):
        held.extend(map(weakref.ref, values))

    def first():
        kept = torch.zeros(100)
        keep(kept)
        raise ValueError("the first error")

    def second():
        kept = [torch.zeros(100), torch.zeros(100)]
        keep(*kept)
        kept.append(kept)  # a circle, which only the collector of garbage frees
        try:
            first()
        except ValueError as error:
            raise torch.OutOfMemoryError("CUDA out of memory.") from error

    def third(spent):
        try:
            second()
        except torch.OutOfMemoryError:
            kept = torch.zeros(100)
            keep(kept)
            raise RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")  # noqa: B904  # its context

    def advice(demand, reason):
        found.append((reason, sum(each() is not None for each in held)))
        return "the advice"

    parameter = next(trainer.state.network.parameters())
    parameter.grad = torch.zeros_like(parameter)
    keep(parameter.grad)
    monkeypatch.setattr(memory, "advice_on_memory", advice)
    with pytest.raises(pd.InputError, match="the advice"), explain_out_of_memory(trainer.demand):
        third(0.0)
    assert found == [("MPS backend out of memory (MPS allocated: 9 GB)", 0)] and len(held) == 5


def test_a_pass_that_does_not_fit_leaves_nothing(hungry, monkeypatch):
    demand, held = hungry(4).demand(), []

    def loss(shape, num):
        kept = torch.zeros(100)
        held.append(weakref.ref(kept))
        again = [kept]
        again.append(again)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    seen = []
    monkeypatch.setattr(memory, "_empty_cache", lambda device: seen.append([each() for each in held]))
    assert not memory._passes(replace(demand, loss=loss), (8, 12), 2)
    assert seen == [[None]]
