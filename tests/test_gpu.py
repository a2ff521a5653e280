"""What only a GPU can show."""

import numpy as np
import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.config import Engine
from patch_diffusion.data.order import SampleOrder
from patch_diffusion.training import feed

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
    assert continued.seen.step == 4


def test_the_step_does_not_wait(make_trainer):
    trainer = make_trainer(engine=Engine(device="cuda"))
    trainer.train_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
    made.take(0, 0, 20)
    torch.cuda.set_sync_debug_mode("error")
    try:
        taken = []
        for first in range(0, 1000, 20):
            made.expect(0, first, 20)
            taken.append(made.take(0, first, 20)[0])
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
