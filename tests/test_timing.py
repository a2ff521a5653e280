import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.config import Config, Network
from patch_diffusion.training import timing
from patch_diffusion.training.timing import measure_speed


@pytest.fixture
def pictures():
    random = torch.Generator().manual_seed(0)
    return pd.ImageSet(torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8, generator=random))


def config(**options):
    return Config(network=Network(width=4, multipliers=(1, 2), blocks=1), minutes=1.0, **options)


def test_overhead_and_rate_are_told_apart(pictures, monkeypatch):
    """Steps take so long as a clock says that a host of 0.3 s a step and a device of 10^9 operations a second would."""
    now, step = [0.0], timing.Trainer.train_step

    def taken(trainer, spent=0.0):
        before = trainer.state.counters.flops
        found = step(trainer, spent)
        now[0] += 0.3 + (trainer.state.counters.flops - before) / 1e9
        return found

    monkeypatch.setattr(timing.Trainer, "train_step", taken)
    monkeypatch.setattr(timing.time, "monotonic", lambda: now[0])
    speed = measure_speed(pictures, config(), seconds=1000)
    assert speed.overhead == pytest.approx(0.3, rel=1e-6) and speed.rate == pytest.approx(1e9, rel=1e-6)
    assert speed.activations > 0 and (speed.memory is None or speed.memory > 10**8)


def test_it_measures_what_it_says_and_writes_nothing(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    speed = measure_speed(pictures, config(), seconds=0.1)
    assert 0 < speed.overhead < 10 and 1e5 < speed.rate < 1e15
    assert not list(tmp_path.iterdir())
