"""What `benchmarks/against_others.py` and `benchmarks/race_curve.py` compute, without a training."""

import json
import math
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from patch_diffusion.sampling.solvers import heun, karras_sigmas

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "others")]

import judged  # noqa: E402
import race_curve  # noqa: E402

SHAPE = (3, 4, 4)


@pytest.mark.parametrize("kind", ["noise", "v"])
@pytest.mark.parametrize("sigma", [0.05, 0.7, 6.4])
def test_a_network_that_knows_the_noise_is_a_perfect_denoiser(kind, sigma):
    clean, noise = torch.rand(2, *SHAPE) * 2 - 1, torch.randn(2, *SHAPE)
    scale = 1 / math.sqrt(1 + sigma**2)

    def predict(noisy, times):
        torch.testing.assert_close(noisy, scale * (clean + sigma * noise))  # of unit variance, as DDPM has it
        return noise if kind == "noise" else scale * noise - scale * sigma * clean

    denoise = judged.denoiser_of(predict, torch.linspace(0.01, 10, 1000), kind)
    torch.testing.assert_close(denoise(clean + sigma * noise, sigma), clean, rtol=0, atol=1e-5)


def test_the_time_of_a_noise_level_lies_between_those_of_the_schedule():
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    levels = ((1 - alphas) / alphas).sqrt()
    seen = []

    def predict(noisy, times):
        seen.append(times[0].item())
        return noisy

    denoise = judged.denoiser_of(predict, levels, "noise")
    for sigma in (levels[500].item(), math.sqrt(levels[500].item() * levels[501].item())):
        denoise(torch.zeros(1, *SHAPE), sigma)
    assert seen == pytest.approx([500, 500.5], abs=1e-4)


def test_errors_are_those_of_each_image_and_clipped_ones_are_no_larger(tmp_path):
    clean, noise = np.full((2, *SHAPE), 0.9, np.float32), np.ones((1, 2, *SHAPE), np.float32)
    np.savez(tmp_path / "judges.npz", clean=clean, noise=noise, sigmas=np.array([0.5]))
    found = judged.judged(lambda noisy, sigma: noisy, {"judges": tmp_path / "judges.npz", "batch": 1})
    assert found["squared"] == pytest.approx(np.full((1, 2), 0.25)) and found["clipped"] == pytest.approx(0.01)


def test_samples_are_made_as_we_make_them(tmp_path):
    """By the same levels and solver, up to the float64 that ours are computed in."""
    np.savez(tmp_path / "judges.npz", clean=np.zeros((1, *SHAPE), np.float32))

    def denoise(noisy, sigma):
        return noisy * 0.25 / (0.25 + float(sigma) ** 2) + 0.1

    found = judged.sampled(denoise, {"judges": tmp_path / "judges.npz", "batch": 2, "samples": 3})
    noise = 80 * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    usual = heun(lambda noisy, sigma: denoise(noisy, sigma), noise, karras_sigmas(18, 0.002, 80.0))
    usual = ((usual.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1)
    assert found.shape == (3, 4, 4, 3) and np.abs(found[:2].astype(float) - usual.numpy()).max() <= 1


def race_of(minutes, seeds=("0", "1"), ratios=(2.0, 8.0)):
    """What a curve reads of race.json."""
    finals = {arm: {"loss": 0.3, "by_seed": dict.fromkeys(seeds, 0.3)} for arm in ("whole", "patches")}
    by_seed = {seed: {"at": minutes, "ratio": ratio} for seed, ratio in zip(seeds, ratios, strict=True)}
    standings = {
        "seeds": list(map(int, seeds)),
        "final": finals,
        "reaches": {"patches": {"whole": {"by_seed": by_seed}}},
    }
    return {
        "standings": standings,
        "distances": {"kernel": {"final": finals}},
        "points": {arm: {seed: [{"step": 9}] for seed in seeds} for arm in finals},
        "tuning": {arm: {"options": {}, "left_out": "", "trials": [{}]} for arm in finals},
        "judged_by": {"images": 64},
        "parameters": {"whole": 1},
    }


def test_a_curve_has_the_range_over_the_seeds():
    found = race_curve.row(race_of(3.0), 3.0)
    assert (found["ratio"]["mean"], found["ratio"]["least"], found["ratio"]["most"]) == (pytest.approx(4), 2, 8)
    assert "4.00 times as fast (2.00 to 8.00)" in race_curve.in_words(found)
    missed = race_curve.row(race_of(1.0, ratios=(2.0, None)), 1.0)
    assert missed["ratio"]["mean"] is None and "with 1 of 2 seeds" in race_curve.in_words(missed)
    drawn = race_curve.picture([missed, found], "cats & dogs")
    assert drawn.count("<circle") == 1 + 2 * 2 and "4.00 times" in drawn and "cats &amp; dogs" in drawn
    assert "nan" not in drawn and drawn.count("not reached") == 1


def test_a_finished_race_is_not_run_again_and_others_are_refused(tmp_path, monkeypatch):
    folder = tmp_path / "minutes-3"
    folder.mkdir()
    (folder / "race.json").write_text(json.dumps(race_of(3.0)))
    asked = Namespace(runs=tmp_path, seeds="0-1", tune_share=0.5)
    ran = []
    monkeypatch.setattr(race_curve.subprocess, "run", lambda words: ran.append(words) or Namespace(returncode=130))
    assert race_curve.raced(asked, 3.0, []) == race_of(3.0) and not ran
    with pytest.raises(SystemExit):  # stopped, with one seed more
        race_curve.raced(Namespace(**{**vars(asked), "seeds": "0-2"}), 3.0, ["digits"])
    assert ran[0][4:] == ["digits", "--minutes", "3", "--tune", "1.5", "--seeds", "0-2", "--out", str(folder)]
    race_curve.refuse_others(tmp_path / "options.json", ["digits"])
    race_curve.refuse_others(tmp_path / "options.json", ["digits"])
    with pytest.raises(SystemExit, match="races with other options"):
        race_curve.refuse_others(tmp_path / "options.json", ["digits", "--moments", "3"])
