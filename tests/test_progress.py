import io
import json
import math
import sys
from dataclasses import replace

import pytest

from patch_diffusion.training.losses import Summary
from patch_diffusion.training.progress import Progress
from patch_diffusion.training.state import Counters

SUMMARY = Summary({"4x4": 5.0, "8x8": 1.5}, {"0.1": 2.0}, num_steps=3, skipped=1)


def test_a_line_has_the_means(tmp_path):
    progress = Progress(tmp_path / "log.jsonl", show=False)
    progress.log(Counters(step=3, images=9), 0.5, 1e-3, SUMMARY)
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert line["loss"] == {"4x4": 5.0, "8x8": 1.5} and line["loss_by_noise"] == {"0.1": 2.0} and line["skipped"] == 1
    assert (line["step"], line["images"], line["spent"], line["learning_rate"]) == (3, 9, 0.5, 1e-3)


def test_held_out_losses_have_a_line(tmp_path):
    progress = Progress(tmp_path / "log.jsonl", show=False)
    assert progress.log_held_out(Counters(step=3), 0.5, {0.05: 1.0, 6.4: 0.5}) == 0.75
    progress.log_held_out(Counters(step=4), 0.5, {0.05: 1.0}, {"8x8": 0.5})
    line, other = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert line["step"] == 3 and line["held_out"] == {"loss": 0.75, "by_noise": {"0.05": 1.0, "6.4": 0.5}}
    assert other["held_out"]["by_size"] == {"8x8": 0.5}


@pytest.mark.parametrize("losses", [({0.05: math.nan}, {}), ({0.05: 1.0}, {"8x8": math.inf})])
def test_held_out_losses_that_are_not_finite_are_a_note(tmp_path, losses):
    progress = Progress(tmp_path / "log.jsonl", show=False)
    assert progress.log_held_out(Counters(step=3), 0.5, *losses) is None
    line = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail)
    assert line == {"step": 3, "note": "WARNING: the loss of held-out images is not finite"}


def test_what_was_measured_of_samples_has_a_line_and_is_shown(tmp_path, capsys):
    numbers = {
        "frechet": 12.3456,
        "near_copies": 0.25,
        "near_copies_held_out": 0.1,
        "near_copies@1/2": 0.3,
        "mine": 2.0,
    }
    Progress(tmp_path / "log.jsonl", show=True).log_samples(Counters(step=3000, images=9, seconds=2.0), 0.5, numbers)
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert line == {"step": 3000, "images": 9, "seconds": 2.0, "spent": 0.5, "samples": numbers}
    told = "step 3,000: Frechet distance 12.35, mine 2, near copies 25.0% (of held-out images: 10.0%)"
    assert capsys.readouterr().err.strip() == told


def test_continuing_drops_later_and_broken_lines(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    Progress(log, show=False).continue_log(2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_shown_fits_eighty_columns(tmp_path, monkeypatch, terminal):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    progress = Progress(tmp_path / "log.jsonl")
    with progress:
        progress.note("a note", 0)
        progress.log(Counters(step=1_234_000, images=5), 0.5, 1e-3, replace(SUMMARY, by_size={"8x8": 0.25}))
        progress.show(Counters(step=1_234_000, images=123_456), 0.5, 10.0)
        progress.show(Counters(step=1_234_560, images=987_654_321), 1.0, 20.0)
    text = stream.getvalue()
    assert "a note" in text and "step 1,234,560" in text and "loss 0.250" in text and "left" in text
    assert ("\x1b[" in text) == terminal
    if not terminal:
        assert all(len(line) <= 80 for line in text.splitlines())
