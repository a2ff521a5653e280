import io
import json
import sys

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.training.cost import Seen
from patch_diffusion.training.progress import Progress


def test_a_line_has_the_mean_per_size(tmp_path):
    progress = Progress(tmp_path / "log.jsonl", show=False)
    for size, loss in (("8x8", 1.0), ("8x8", 2.0), ("4x4", 5.0)):
        progress.record(size, torch.tensor(loss))
    progress.log(Seen(step=3, images=9), 0.5, 1e-3)
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert line["loss"] == {"4x4": 5.0, "8x8": 1.5}
    assert (line["step"], line["images"], line["spent"], line["learning_rate"]) == (3, 9, 0.5, 1e-3)


def test_what_is_not_logged_yet_survives_a_checkpoint(tmp_path):
    first, second = (Progress(tmp_path / name, show=False) for name in ("a", "b"))
    for loss in (0.1, 0.2, 0.7):
        first.record("8x8", torch.tensor(loss))
    second.restore(json.loads(json.dumps(first.pending())))
    for progress in (first, second):
        progress.log(Seen(), 0, 0)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


def test_continuing_drops_later_and_broken_lines(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    Progress(log, show=False).continue_log(2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_infinite_losses_stop(tmp_path):
    progress = Progress(tmp_path / "log.jsonl", show=False)
    progress.record("8x8", torch.tensor(float("inf")))
    with pytest.raises(pd.InputError, match="the loss on 8x8 became inf"):
        progress.log(Seen(), 0, 0)
    assert not (tmp_path / "log.jsonl").exists()


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
        progress.record("8x8", torch.tensor(0.25))
        progress.log(Seen(step=1_234_000, images=5), 0.5, 1e-3)
        progress.show(Seen(step=1_234_000, images=123_456), 0.5)
        progress.show(Seen(step=1_234_560, images=987_654_321), 1.0)
    text = stream.getvalue()
    assert "a note" in text and "step 1,234,560" in text and "loss 0.250" in text and "left" in text
    assert ("\x1b[" in text) == terminal
    if not terminal:
        assert all(len(line) <= 80 for line in text.splitlines())
