"""A run folder made by the version before opens, continues as if nothing had happened, and samples the same pixels."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.files import read_tensors
from patch_diffusion.runs.folder import RunFolder

FOLDER = Path(__file__).parent / "runs_before"


@pytest.fixture
def run(tmp_path):
    """A copy of the run, half of whose budget is spent."""
    shutil.copytree(FOLDER / "run", tmp_path / "run")
    return tmp_path / "run"


def expected():
    return read_tensors(FOLDER / "expected.safetensors")


def sampled(run):
    return torch.stack([sample.pixels for sample in pd.generate(pd.load(run, device="cpu"), range(4), steps=6)])


def test_it_opens_and_samples_the_same_pixels(run):
    assert pd.describe(run)["checkpoints"] == [6]
    # Another processor may round another way.
    assert (sampled(run).int() - expected()["samples_before"].int()).abs().max() <= 1


def test_it_continues_as_it_would_have(run):
    config, facts = RunFolder(run).read_config()
    pd.train(config, run, show=False)
    found = {f"model.{name}": tensor for name, tensor in read_tensors(run / "model.safetensors").items()}
    wanted = expected()
    for name, tensor in found.items():
        assert torch.allclose(tensor, wanted[name], rtol=1e-3, atol=1e-5), name
    assert (sampled(run).int() - wanted["samples"].int()).abs().max() <= 2
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for line, before in zip(lines, map(json.loads, (FOLDER / "expected.jsonl").read_text().splitlines()), strict=True):
        assert line.keys() - {"seconds"} == before.keys()
        assert all(line[key] == before[key] for key in before.keys() - {"loss", "loss_by_noise", "held_out"})
        assert {size: pytest.approx(loss, rel=1e-3) for size, loss in line.get("loss", {}).items()} == before.get(
            "loss", {}
        )
    assert RunFolder(run).read_config() == (config, facts)


def test_a_schedule_of_one_fixed_size_opens_as_a_stochastic_one(run):
    content = json.loads((run / "config.json").read_text())
    content["patches"] |= {"kind": "fixed", "whole": 1.0}
    (run / "config.json").write_text(json.dumps(content))
    config, _ = RunFolder(run).read_config()
    assert config.patches.kind == "stochastic" and config == replace(config, patches=replace(config.patches, whole=1.0))
