"""What only a GPU can show."""

import json

import numpy as np
import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.config import Config, Data, Engine, Network, Optimizer
from patch_diffusion.data.augment import Augment
from patch_diffusion.data.order import SampleOrder
from patch_diffusion.files import read_json
from patch_diffusion.processes import run_processes
from patch_diffusion.sampling.options import Sampling
from patch_diffusion.training.batches import Position
from patch_diffusion.training.hardware import feed, memory
from patch_diffusion.training.hardware.memory import explain_out_of_memory

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_trains_there_and_loads_here(make_trainer):
    trainer = make_trainer(engine=Engine(device="cuda"))
    model = trainer.fit(steps=3)
    assert model.device.type == "cuda"
    on_gpu, on_cpu = (
        next(pd.generate(pd.load(trainer.run.path, device=device), [0], steps=4)).pixels for device in ("cuda", "cpu")
    )
    assert (on_gpu.int() - on_cpu.int()).abs().max() <= 2


def test_continues_there(make_trainer):
    make_trainer(engine=Engine(device="cuda")).fit(steps=2)
    continued = make_trainer(engine=Engine(device="cuda"))
    continued.fit(steps=4)
    assert continued.state.counters.step == 4


def test_the_step_does_not_wait(make_trainer):
    trainer = make_trainer(engine=Engine(device="cuda"))
    trainer.train_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _one_that_shares(folder):
    """Slices on the device of one process, which holds all of them: the whole way of FSDP2, in each number format."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    from patch_diffusion.training.checkpoints.sharded_checkpoint import SharedCopies, read_shared_checkpoint
    from patch_diffusion.training.hardware.sharding import is_sharded, shard
    from patch_diffusion.training.optimizing.optimizers import make_optimizer
    from patch_diffusion.training.state import optimizer_tensors

    torch.cuda.set_device(0)
    dist.init_process_group("nccl")
    hosts = dist.new_group(backend="gloo")
    mesh = init_device_mesh("cuda", (1,))
    for kind, type in (("adamw", torch.bfloat16), ("muon", torch.float16)):
        torch.manual_seed(0)
        denoiser = shard(pd.Denoiser(pd.UNet(3, 16, (1, 2), 1, dropout=0.0)), mesh, type)
        network = denoiser.module
        optimizer = make_optimizer(network.parameters(), Optimizer(kind=kind))
        scaler = torch.amp.GradScaler("cuda", enabled=type is torch.float16)
        clean, coords = torch.rand(4, 3, 16, 16, device="cuda"), pd.coordinate_grid(16, 16, device="cuda")
        losses = []
        for _ in range(20):
            noise = torch.randn(clean.shape, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
            with torch.autocast("cuda", type):
                loss = pd.denoising_loss(
                    denoiser, clean, coords, torch.ones(4, device="cuda"), None, noise=noise
                ).mean()
                scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0], losses
        assert all(is_sharded(parameter) and parameter.device.type == "cuda" for parameter in network.parameters())

        tensors = {
            "weights": network.state_dict(),
            "ema": network.state_dict(),
            "optimizer": optimizer_tensors(optimizer, network),
        }
        in_memory = SharedCopies.of(tensors, hosts)
        assert {piece.numbers.device.type for piece in in_memory.slices.values()} == {"cpu"}
        in_memory.write(folder / kind, {})
        content, _ = read_shared_checkpoint(folder / kind, network, hosts)
        for name, group in tensors.items():
            for key, tensor in group.items():
                local, read = (each.to_local() if is_sharded(each) else each for each in (tensor, content[name][key]))
                assert torch.equal(local.cpu(), read.cpu()), (name, key)
    dist.destroy_process_group()


def test_a_model_in_slices(tmp_path):
    """As of several processes, which one GPU cannot take: their number is one, and all else as it is."""
    run_processes(1, _one_that_shares, tmp_path)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_two_share_a_model(tmp_path):
    config = Config(
        data=Data("digits", resolution=8),
        network=Network(width=16, multipliers=(1, 2), blocks=1, dropout=0.0),
        engine=Engine(device="cuda", processes=2, shard=True),
        batch=8,
        steps=4,
        samples=1,
        checkpoints=1,
        log_every=1,
    )
    pd.train(config, tmp_path / "run", show=False)
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    checksums = read_json(tmp_path / "run/checkpoints/step-00000004/state.json")["checksums"]
    assert sum(name.startswith("shards/") for name in checksums) == 2


@pytest.mark.parametrize("share", [1 / 4, 0.0], ids=["on the device", "read ahead"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("last", [False, True])
def test_images_come_without_waiting(tmp_path, monkeypatch, share, dtype, last):
    monkeypatch.setattr(feed, "SHARE_OF_DEVICE", share)
    values = np.random.default_rng(0).integers(0, 255, (50, 3, 6, 8)).astype(dtype)
    np.save(tmp_path / "a.npy", values.transpose(0, 2, 3, 1) if last else values)
    images = pd.open_images(tmp_path / "a.npy")
    order = SampleOrder(50, seed=0)
    made = feed.Feed(images, [order], torch.device("cuda"))
    made.get(0, 0, 20)
    torch.cuda.set_sync_debug_mode("error")
    try:
        taken = [made.get(0, first, 20)[0] for first in range(0, 1000, 20)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for number, pixels in enumerate(taken):
        wanted = values[order.indices(20 * number, 20)]
        assert pixels.device.type == "cuda" and np.array_equal(pixels.cpu().numpy(), wanted)


def test_steps_on_a_file_do_not_wait_either(tmp_path, monkeypatch, make_trainer):
    monkeypatch.setattr(feed, "SHARE_OF_DEVICE", 0.0)
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (30, 3, 8, 12), dtype=np.uint8))
    trainer = make_trainer(engine=Engine(device="cuda"), images=pd.open_images(tmp_path / "a.npy"))
    trainer.train_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("share", [1 / 4, 0.0], ids=["on the device", "read ahead"])
@pytest.mark.parametrize("options", [{"flip": 0.5}, {"p": 0.9}])
def test_images_of_16_bits_are_augmented_and_cut_there(tmp_path, monkeypatch, make_trainer, share, options):
    monkeypatch.setattr(feed, "SHARE_OF_DEVICE", share)
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 2**16, (30, 1, 8, 12), dtype=np.uint16))
    augment = Augment(**options)
    trainer, on_cpu = (
        make_trainer(
            out=device,
            engine=Engine(device=device),
            images=pd.open_images(tmp_path / "a.npy"),
            network={"num_classes": 0, "augment_channels": augment.channels},
            schedule={"whole": 0.5},
            augment=augment,
        )
        for device in ("cuda", "cpu")
    )
    for _ in range(8):
        trainer.train_step()
    for step in range(8):
        one, other = (each.batches.microbatch(Position(step, 0, {})).batch for each in (trainer, on_cpu))
        torch.testing.assert_close(one.clean.cpu(), other.clean, atol=1e-5, rtol=0)
        # Drawn on the host, so that a run is the same on every device.
        assert torch.equal(one.noise.cpu(), other.noise) and torch.equal(one.sigma.cpu(), other.sigma)


@pytest.mark.parametrize("solver", ["heun", "dpm_solver_3m", "ancestral", "stochastic_heun", "euler_maruyama"])
@pytest.mark.parametrize("tile", [None, 4])
def test_no_step_of_sampling_waits(make_model, solver, tile):
    model = make_model().to("cuda")

    def wait_for_nothing(step):
        torch.cuda.set_sync_debug_mode("error")

    def check_finite(images):  # once after the last step
        torch.cuda.set_sync_debug_mode("default")

    options = Sampling(steps=4, solver=solver, tile=tile)
    first = next(pd.generate(model, [0], options)).pixels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("patch_diffusion.data.codec.check_finite", check_finite)
        try:
            again = next(pd.generate(model, [0], options, callback=wait_for_nothing)).pixels
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, again)


def test_memory_of_a_step_that_failed_is_free_when_it_is_tried_what_fits(make_trainer, monkeypatch):
    trainer = make_trainer(engine=Engine(device="cuda"))
    free = []

    def too_much(spent):
        kept = torch.zeros(2**28, device="cuda")  # 1 GiB
        torch.zeros(2**45, device="cuda")
        return kept

    def advice(demand, reason):
        free.append(torch.cuda.memory_allocated())
        return "the advice"

    trainer.train_step()
    before = torch.cuda.memory_allocated()
    monkeypatch.setattr(memory, "advice_on_memory", advice)
    with pytest.raises(pd.InputError, match="the advice"), explain_out_of_memory(trainer.demand):
        too_much(0.0)
    assert free[0] <= before
