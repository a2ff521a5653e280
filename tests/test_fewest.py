"""The fewest steps that are enough, on an oracle."""

import json
from pathlib import Path

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.cli import main
from patch_diffusion.sampling import fewest
from refusal import refused

RUN = Path(__file__).parent / "runs_before" / "run"


class Oracle(pd.Denoiser):
    """Grey pictures whose pixels are normal numbers of deviation 0.3 about a middle grey."""

    image_channels = 1

    def forward(self, noisy, sigma, conditions):
        return 0.1 + 0.09 * (noisy - 0.1) / (0.09 + sigma**2)


@pytest.fixture
def oracle():
    return Oracle(lambda *_: None, resolution=(8, 8))


def pictures(model, sampling, steps, seeds):
    return torch.stack([sample.pixels.double() for sample in pd.generate(model, seeds, sampling, steps=steps)])


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_it_is_the_first_number_near_twice_as_many(oracle, solver):
    sampling = pd.Sampling(solver=solver)
    found = pd.fewest_steps(oracle, sampling, seeds=[3, 4], within=3.0)
    assert found.seeds == (3, 4) and found.tried
    for steps, distance in (*found.tried, (found.steps, found.distance)):
        far = (
            (pictures(oracle, sampling, steps, [3, 4]) - pictures(oracle, sampling, 2 * steps, [3, 4])).square().mean()
        )
        assert distance == pytest.approx(far.sqrt().item())
        assert (distance <= 3) == (steps == found.steps)
    assert pd.fewest_steps(oracle, sampling, seeds=[3, 4], within=3.0) == found
    assert pd.fewest_steps(oracle, sampling, seeds=[3, 4], within=0.5).steps > found.steps


def test_a_distance_that_is_never_reached(oracle):
    found = pd.fewest_steps(oracle, pd.Sampling(solver="euler"), seeds=[0], within=1e-9)
    assert found.steps == 128 and found.distance > found.within and len(found.tried) == 10


def test_what_cannot_be_asked(oracle):
    with refused("steps", "ancestral adds noise at each step"):
        pd.fewest_steps(oracle, pd.Sampling(solver="ancestral"))
    with refused("within"):
        pd.fewest_steps(oracle, within=0.0)


def test_the_command_stores_what_it_found(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fewest, "TRIED", (2, 3))
    line = ["sample", str(RUN), "--out", str(tmp_path), "--seeds", "5", "--solver", "unipc", "--steps", "auto"]
    assert main([*line, "--class", "0"]) == 0
    told = capsys.readouterr().err
    (sample,) = json.loads((tmp_path / "samples.json").read_text())["samples"]
    found = pd.fewest_steps(pd.load(RUN), pd.Sampling(solver="unipc"), label=0)
    assert sample["settings"]["steps"] == found.steps and f"{found.steps} steps: " in told
    assert sample["settings"]["auto"] == json.loads(json.dumps(found.settings()))
    assert main([*line, "--class", "0"]) == 0 and "(1 were there already)" in capsys.readouterr().err
