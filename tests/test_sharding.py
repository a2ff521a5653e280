"""Processes that share one model (FSDP2), on CPU: what a single process with the whole of it does, they do."""

import json
import os
import shutil
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import patch_diffusion as pd
from patch_diffusion.config import Config, Data, Ema, Engine, Network, Optimizer, Patches, Watch
from patch_diffusion.files import read_tensors
from patch_diffusion.processes import run_processes
from patch_diffusion.training.build import build_trainer
from patch_diffusion.training.checkpoints import checkpoint
from patch_diffusion.training.choices.suggest import suggest
from patch_diffusion.training.hardware.sharding import blocks, shard
from patch_diffusion.training.optimizing import muon

pytestmark = pytest.mark.scheduled

SMALL = Config(
    data=Data("digits", resolution=8),
    network=Network(width=16, multipliers=(1,), blocks=1, attention=(0,), dropout=0.0),
    patches=Patches(sizes={"1/2": 1.0}),
    optimizer=Optimizer(learning_rate=1e-3, clip=1.0, decay="constant", warmup=0.0),
    ema=Ema(lengths=(0.05, 0.1)),
    engine=Engine(device="cpu", threads=1),
    batch=6,
    steps=4,
    samples=0,
    checkpoints=2,
    log_every=1,
)
HALF = replace(SMALL, steps=2, checkpoints=1)
SHARED = Engine(device="cpu", threads=1, shard=True)
NOT_SHARED = ("steps", "engine.shard")  # given, as a run that continues keeps what is not
IN_PARTS = replace(SHARED, accumulation=2)
WITH_MUON = replace(SMALL, optimizer=replace(SMALL.optimizer, kind="muon"))
SCHEDULE_FREE = replace(SMALL, optimizer=replace(SMALL.optimizer, kind="schedule_free"), ema=Ema())
EDM2 = replace(
    WITH_MUON,
    network=replace(SMALL.network, kind="edm2"),
    optimizer=replace(WITH_MUON.optimizer, learning_rate=0.05),
)
BF16 = Engine(device="cpu", threads=1, precision="bf16")


class Own(nn.Module):
    """A network of one's own: no lists, a sequence, weights used twice, and a vector shorter than the processes."""

    image_channels = 1

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.middle[2].weight = self.middle[0].weight
        self.gain = nn.Parameter(torch.ones(1))
        self.last = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x, c_noise, labels=None):
        return self.last(self.middle(self.first(x)) * self.gain)


def train_own(folder, engine):
    torch.manual_seed(0)
    images = pd.open_images("digits", resolution=8, show=False)
    options = {"engine": engine, "batch": 4, "samples": 0, "log_every": 1, "show": False}
    pd.Trainer(pd.Denoiser(Own(), 0.5), images, out=folder, **options).fit(steps=3)


def held(tensors):
    """Numbers of these tensors in this process, and in all."""
    here = sum(tensor.to_local().numel() if hasattr(tensor, "to_local") else tensor.numel() for tensor in tensors)
    return [here, sum(tensor.numel() for tensor in tensors)]


def moves_by_what_is_not_finite(trainer):
    """Whether a step says it was skipped, and whether weights have moved, if a gradient of the last process is not."""
    trainer.train_step(0.5)
    parameters = list(trainer.state.network.parameters())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    if trainer.engine.group.rank == trainer.engine.group.world - 1:
        parameters[0].grad.to_local()[-1] = torch.inf
    before = [parameter.to_local().clone() for parameter in parameters]
    skipped = trainer.engine.step(trainer.state.optimizer, 1.0)
    after = [parameter.to_local() for parameter in parameters]
    return [float(skipped), not all(torch.equal(one, two) for one, two in zip(before, after, strict=True))]


def two_processes(folder):
    """All runs of two processes, as starting them is what takes the time."""
    first, second = os.environ["RANK"] == "0", os.environ["RANK"] == "1"

    images = pd.open_images("digits", resolution=8, show=False)
    config, _ = suggest(images, replace(SMALL, engine=IN_PARTS, samples=1))
    trainer = build_trainer(config, images, folder / "shared", show=False)
    trainer.fit(steps=4)
    moments = [tensor for state in trainer.state.optimizer.state.values() for tensor in state.values() if tensor.ndim]
    counts = {
        "weights": held(list(trainer.state.network.parameters())),
        "moments": held(moments),
        "average": held(list(trainer.state.average.denoiser.parameters())),
        "power average": held(list(trainer.state.power_averages["ema-0.1"].tensors.values())),
    }
    (folder / f"held-{os.environ['RANK']}.json").write_text(json.dumps(counts))

    not_finite = [moves_by_what_is_not_finite(trainer)]
    with_muon = build_trainer(replace(WITH_MUON, engine=SHARED), images, folder / "none", show=False)
    not_finite.append(moves_by_what_is_not_finite(with_muon))
    (folder / f"not-finite-{os.environ['RANK']}.json").write_text(json.dumps(not_finite))

    pd.train(replace(HALF, engine=IN_PARTS), folder / "stopped", show=False)
    pd.train(replace(SMALL, engine=IN_PARTS), folder / "stopped", show=False)

    pd.train(replace(SMALL, engine=SHARED), folder / "was alone", show=False)
    pd.train(replace(HALF, engine=SHARED), folder / "was shared", show=False)
    trainer.engine.group.barrier()
    if first:
        shutil.copytree(folder / "was shared", folder / "to one")
        shutil.copytree(folder / "was shared", folder / "to three")
    trainer.engine.group.barrier()
    pd.train(SMALL, folder / "was shared", given=NOT_SHARED, show=False)

    muon.MOST_WHOLE = 1000  # so that matrices go through in portions
    pd.train(replace(WITH_MUON, engine=IN_PARTS), folder / "muon", show=False)
    pd.train(replace(SCHEDULE_FREE, engine=IN_PARTS), folder / "schedule-free", show=False)
    pd.train(replace(EDM2, engine=IN_PARTS), folder / "edm2", show=False)
    pd.train(replace(SMALL, engine=replace(BF16, shard=True)), folder / "bf16", show=False)
    train_own(folder / "own", SHARED)

    trainer.engine.group.barrier()
    if first:
        shutil.copytree(folder / "shared", folder / "damaged")
        flip(next((folder / "damaged/checkpoints/step-00000004/shards").glob("shard-00002*")))
    trainer.engine.group.barrier()
    pd.train(replace(SMALL, engine=IN_PARTS), folder / "damaged", show=False)

    checksum, further = checkpoint.file_checksum, threading.Event()
    trainer = build_trainer(replace(SMALL, engine=SHARED), images, folder / "behind", show=False)
    take_step = trainer.train_step

    def step(spent):
        if trainer.state.counters.step == 2:  # the checkpoint of it has been begun
            further.set()
        return take_step(spent)

    def waits(file):
        if "step-00000002.tmp" in str(file):
            (folder / f"behind-{os.environ['RANK']}").write_text(str(further.wait(timeout=60)))
        return checksum(file)

    trainer.train_step, checkpoint.file_checksum = step, waits  # pyright: ignore[reportAttributeAccessIssue]
    trainer.fit(steps=4)

    def full(file):
        if second and "step-00000002.tmp" in str(file):
            raise OSError(28, "No space left on device", str(file))
        return checksum(file)

    checkpoint.file_checksum = full
    pd.train(replace(SMALL, engine=SHARED), folder / "full", show=False)

    def killed(file):
        if second and "step-00000004.tmp" in str(file):
            os.kill(os.getpid(), signal.SIGKILL)
        return checksum(file)

    checkpoint.file_checksum = killed
    pd.train(replace(SMALL, engine=SHARED), folder / "killed", show=False)


def three_processes(folder):
    pd.train(replace(SMALL, engine=SHARED), folder / "to three", show=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    pd.train(replace(SMALL, samples=1), folder / "alone", show=False)
    pd.train(HALF, folder / "was alone", show=False)
    pd.train(WITH_MUON, folder / "muon alone", show=False)
    pd.train(SCHEDULE_FREE, folder / "schedule-free alone", show=False)
    pd.train(EDM2, folder / "edm2 alone", show=False)
    pd.train(replace(SMALL, engine=BF16), folder / "bf16 alone", show=False)
    train_own(folder / "own alone", SMALL.engine)
    with pytest.raises(pd.InputError, match="of the run died|another process of this run is gone"):
        run_processes(2, two_processes, folder)
    run_processes(3, three_processes, folder)
    for name in ("to one", "killed"):
        pd.train(SMALL, folder / name, given=NOT_SHARED, show=False)
    return folder


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_training_goes_on_while_slices_are_written(runs):
    assert [(runs / f"behind-{rank}").read_text() for rank in (0, 1)] == ["True", "True"]
    assert_equal(runs / "behind", runs / "alone")
    assert checkpoint.verify(runs / "behind/checkpoints/step-00000002", 0, 1)["seen"]["step"] == 2


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder):
    return [line["loss"] for line in lines(folder) if "loss" in line]


def assert_equal(found, expected, steps=4, rtol=1e-5):
    """The same sizes at every step, the same losses, averages and logged counts."""
    assert [list(line) for line in losses(found)] == [list(line) for line in losses(expected)]
    assert len(losses(found)) == steps
    for one, two in zip(losses(found), losses(expected), strict=True):
        assert one == pytest.approx(two, rel=rtol)
    names = ["model.safetensors"]
    names += [str(file.relative_to(found)) for file in found.glob(f"checkpoints/step-{steps:08d}/ema*")]
    for name in names:
        tensors = read_tensors(found / name)
        for key, tensor in read_tensors(expected / name).items():
            torch.testing.assert_close(tensors[key], tensor, rtol=1e-3, atol=rtol)


@pytest.mark.parametrize("name", ["shared", "muon", "schedule-free", "edm2", "own"])
def test_they_equal_one_process(runs, name):
    """With accumulation and clipping; each of the optimizers, weights of fixed norms, and a network of one's own."""
    alone = "alone" if name == "shared" else f"{name} alone"
    assert_equal(runs / name, runs / alone, steps=3 if name == "own" else 4)


def test_samples_and_held_out_images_are_measured_by_all_together(tmp_path):
    watched = replace(HALF, watch=Watch(("kernel", "memorization"), times=1, samples=4))
    pd.train(watched, tmp_path / "alone", show=False)
    pd.train(replace(watched, engine=replace(SHARED, processes=2)), tmp_path / "shared", show=False)
    for kind, names in (("samples", ("kernel", "near_copies@1/2")), ("held_out", ("loss",))):
        found, expected = ([line for line in lines(tmp_path / name) if kind in line] for name in ("shared", "alone"))
        assert [line["step"] for line in found] == [line["step"] for line in expected] == [2]
        for one, two in zip(found, expected, strict=True):
            assert [one[kind][name] for name in names] == pytest.approx([two[kind][name] for name in names], rel=1e-2)


def test_each_holds_half(runs):
    each = [json.loads((runs / f"held-{rank}.json").read_text()) for rank in range(2)]
    for name, (_, total) in each[0].items():
        here = [counts[name][0] for counts in each]
        assert sum(here) == total > 40_000
        assert max(here) < 0.52 * total


def test_a_gradient_that_is_not_finite_in_one_moves_none(runs):
    for rank in range(2):
        assert json.loads((runs / f"not-finite-{rank}.json").read_text()) == [[1.0, False], [1.0, False]]


def test_pictures_are_those_of_one_process(runs):
    one, two = (np.array(Image.open(runs / name / "samples/step-00000004.png")) for name in ("alone", "shared"))
    assert one.std() > 10
    assert np.abs(one.astype(int) - two).max() <= 1


def test_a_stopped_run_continues_bit_for_bit(runs):
    assert losses(runs / "stopped") == losses(runs / "shared")
    whole, stopped = (runs / name / "checkpoints/step-00000004" for name in ("shared", "stopped"))
    files = sorted(file.relative_to(whole) for file in whole.rglob("*.safetensors"))
    assert len(files) == 5  # three averages and two slices
    for file in files:
        one, two = read_tensors(whole / file), read_tensors(stopped / file)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one), file


@pytest.mark.parametrize("name", ["to three", "to one", "was shared", "was alone"])
def test_any_number_continues(runs, name):
    """Two that share go on as three, as one, and as two with a model each; one goes on as two that share."""
    assert_equal(runs / name, runs / "alone")


def test_each_writes_its_slices_and_nothing_is_pickled(runs):
    folder = runs / "shared/checkpoints/step-00000004"
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    slices = {name for name in names if name.startswith("shards/")}
    averages = {"ema.safetensors", "ema-0.05.safetensors", "ema-0.1.safetensors"}
    assert names - slices == {*averages, "state.json", "config.json"}
    assert len(slices) == 2 and all(name.endswith(".safetensors") for name in slices)
    first, second = (read_tensors(folder / name) for name in sorted(slices))
    with torch.device("meta"):
        network = pd.UNet(1, num_classes=10, **{k: v for k, v in vars(SMALL.network).items() if v is not None})
    for name, parameter in network.named_parameters():
        rows = [len(tensors[f"weights.{name}"]) for tensors in (first, second) if f"weights.{name}" in tensors]
        assert sum(rows) == len(parameter)


def test_what_reads_checkpoints_reads_these(runs):
    for options in ({}, {"checkpoint": 4}, {"ema_length": 0.07}):
        one, two = (pd.load(runs / name, device="cpu", **options).state_dict() for name in ("alone", "shared"))
        for key, tensor in one.items():
            torch.testing.assert_close(two[key], tensor, rtol=1e-3, atol=1e-5)


def test_damage_in_the_slice_of_one_is_damage_for_all(runs):
    (note,) = [line["note"] for line in lines(runs / "damaged") if "WARNING" in line.get("note", "")]
    assert "shard-00002" in note and "checksum" in note
    assert losses(runs / "damaged") == losses(runs / "shared")
    assert (runs / "damaged/checkpoints/step-00000004.damaged").exists()


def test_what_one_cannot_write_all_give_up_and_training_goes_on(runs):
    notes = [line["note"] for line in lines(runs / "full") if "note" in line]
    assert any("No space left" in note and "could not be written" in note for note in notes)
    assert [path.name for path in (runs / "full/checkpoints").iterdir()] == ["step-00000004"]
    assert_equal(runs / "full", runs / "alone")


def test_killed_during_a_save_they_go_on_from_the_one_before(runs):
    assert_equal(runs / "killed", runs / "alone")
    names = {path.name for path in (runs / "killed/checkpoints").iterdir()}
    assert names == {"step-00000002", "step-00000004"}


def test_bf16_is_that_of_one_process_nearly(runs):
    assert losses(runs / "bf16") != losses(runs / "alone")
    for one, two in zip(losses(runs / "bf16"), losses(runs / "bf16 alone"), strict=True):
        assert one == pytest.approx(two, rel=0.02)


@pytest.mark.parametrize(
    "network",
    [
        pd.UNet(3, 32, (1, 2, 4), 2),
        pd.UNet(3, 16, (1, 2), 1, kind="ncsnpp"),
        pd.EDM2UNet(3, 16, (1, 2), 1),
        pd.DiT(3, 64, 4, 4),
    ],
    ids=["ddpmpp", "ncsnpp", "edm2", "dit"],
)
def test_blocks_hold_most_of_a_network_and_none_too_much(network):
    found = blocks(network)
    assert not {type(block) for block in found} & {nn.ModuleList, nn.Sequential}
    inside = {id(parameter): parameter.numel() for block in found for parameter in block.parameters()}
    total = sum(parameter.numel() for parameter in network.parameters())
    assert sum(inside.values()) > 0.7 * total
    assert max(sum(parameter.numel() for parameter in block.parameters()) for block in found) < 0.35 * total


def test_blocks_of_a_network_of_one_s_own():
    """Inner ones first; those that are small, or share weights with another, belong to what is around them."""
    level = nn.ModuleDict({"parts": nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(4, 4)])})
    outer = nn.Module()
    outer.inner = level
    network = nn.Module()
    network.blocks = nn.ModuleList([outer, nn.Linear(64, 64)])
    assert blocks(network) == [level["parts"][0], level["parts"][1], outer, network.blocks[1]]  # pyright: ignore[reportIndexIssue]
    tied = Own()
    assert blocks(tied) == []


def test_what_cannot_be_is_refused(tmp_path, monkeypatch):
    with pytest.raises(pd.InputError, match="this run has one: set engine.processes"):
        pd.train(replace(SMALL, engine=SHARED), tmp_path / "run", show=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for option in ({"compile": True}, {"accumulation": "auto"}):
        with pytest.raises(pd.InputError, match=f"{next(iter(option))}.* and engine.shard do not go together"):
            pd.train(replace(SMALL, engine=replace(SHARED, **option)), tmp_path / "run", show=False)
    assert not (tmp_path / "run").exists()
    network = Own()
    network.gain = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(pd.InputError, match="cannot split gain"):
        shard(pd.Denoiser(network), None)


def test_inspect_times_one_process(tmp_path):
    from patch_diffusion.advice import advise
    from patch_diffusion.data.inspection.inspect import inspect_images

    data = Data("digits", resolution=8)
    advice = advise(inspect_images(data), replace(SMALL, data=data, engine=replace(SHARED, processes=2)), set())
    assert not advice.refusal
    assert advice.forecast is not None and advice.config.engine.shard
