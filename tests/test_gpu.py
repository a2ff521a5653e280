"""What only a GPU can show."""

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.config import Engine

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
