import io
import json
import os
import pty
import subprocess
import sys
import threading
import time
from platform import node

import pytest
from filelock import FileLock
from rich.console import Console

import patch_diffusion as pd
from patch_diffusion.cli import follow as module, main
from patch_diffusion.cli.follow import _view, follow, sparkline
from patch_diffusion.errors import InputError
from patch_diffusion.races.turns import read_measurements
from patch_diffusion.runs.folder import RunFolder, refuse_occupied
from patch_diffusion.runs.history import Curve, History
from patch_diffusion.runs.lock import HOLDER_FILE, LOCK_FILE, holder, locked
from patch_diffusion.runs.log import LogTail, last_measured, parse_line, read_log
from patch_diffusion.training.progress import Progress
from patch_diffusion.web.runs import Runs


def line(step, spent=0.0, **more):
    losses = {"64x64": 0.5, "32x32": 0.25}
    return {
        "step": step,
        "images": 10 * step,
        "seconds": float(step),
        "spent": spent,
        "learning_rate": 1e-3,
        "loss": losses,
        **more,
    }


def text(lines):
    return "".join(json.dumps(one) + "\n" for one in lines)


@pytest.fixture
def run(make_trainer):
    """A run folder without a log."""
    trainer = make_trainer()
    trainer.run.write_config(trainer.config, trainer.facts)
    return trainer.run.path


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "_SECONDS_BETWEEN", 0.01)
    monkeypatch.setattr(module, "_SECONDS_PER_PLAIN_LINE", 0.0)


def steps(news):
    return [found["step"] if found else None for found in news.lines]


def test_a_tail_reads_what_comes_line_by_line(tmp_path):
    log = tmp_path / "log.jsonl"
    tail = LogTail(log)
    assert steps(tail.read()) == []
    log.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert steps(tail.read()) == [1, 2] and steps(tail.read()) == []
    with log.open("a") as file:
        file.write('ep": 3}\nnonsense\n')
    assert steps(tail.read()) == [3, None]


@pytest.mark.parametrize("more", [[], [3], [3, 4, 5, 6, 7, 8]])
def test_a_tail_sees_a_log_that_is_written_anew(tmp_path, more):
    log = tmp_path / "log.jsonl"
    tail = LogTail(log)
    log.write_text(text({"step": step, "seconds": 1} for step in (1, 2, 3, 4, 5)))
    tail.read()
    log.write_text(text([{"step": 1, "seconds": 1}, {"step": 2, "seconds": 1}]))
    with log.open("a") as file:
        file.write(text({"step": step, "seconds": 2} for step in more))
    news = tail.read()
    assert news.restarted and steps(news) == [1, 2, *more] and news.known == 2
    with log.open("a") as file:
        file.write(text([{"step": 9}]))
    news = tail.read()
    assert (news.restarted, steps(news), news.known) == (False, [9], 0)


def test_a_tail_survives_a_log_that_is_gone(tmp_path):
    log = tmp_path / "log.jsonl"
    tail = LogTail(log)
    log.write_text(text([{"step": 1}, {"step": 2}]))
    tail.read()
    log.unlink()
    assert tail.read().restarted and not tail.read().restarted
    log.write_text(text([{"step": 1}, {"step": 7}]))
    news = tail.read()
    assert steps(news) == [1, 7] and news.known == 1


def test_a_long_log_is_read_in_parts(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(text({"step": step, "note": "x" * 200} for step in range(30_000)) + '{"step"')
    tail, found, parts = LogTail(log), [], 0
    while True:
        news = tail.read()
        found += steps(news)
        parts += 1
        if not news.more:
            break
    assert found == list(range(30_000)) and parts > 2
    log.write_text("")
    assert tail.read().restarted
    log.write_text(text([{"step": 0, "note": "y" * 5_000_000}]))
    assert steps(tail.read()) == [0]


@pytest.mark.parametrize("notes", [0, 3, 20_000])
def test_the_last_measured_line_is_found_from_the_end(tmp_path, notes):
    log = tmp_path / "log.jsonl"
    assert last_measured(log) == {}
    lines = [{"step": 0, "note": "a"}, line(1), line(2), *[{"step": 2, "note": "x" * 200}] * notes]
    log.write_text(text(lines) + "{broken}\n" + '{"step": 3, "loss"')
    assert last_measured(log) == [one for one in read_log(log) if one and "loss" in one][-1] == line(2)
    log.write_text(text(lines[:1]))
    assert last_measured(log) == {}


@pytest.mark.parametrize("platform", [sys.platform, "win32"])
def test_who_trains(tmp_path, monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    assert holder(tmp_path) is None and not list(tmp_path.iterdir())
    named = f"process {os.getpid()} on {node()}"
    with locked(tmp_path) as is_ours:
        assert is_ours() and holder(tmp_path) == named
        with pytest.raises(InputError, match=f"is being trained by {named}: wait for it"), locked(tmp_path):
            pass
        assert is_ours() and holder(tmp_path) == named
    assert holder(tmp_path) is None
    (tmp_path / HOLDER_FILE).write_text("process 1, which was killed")
    assert holder(tmp_path) is None
    refuse_occupied(tmp_path, "run")
    with locked(tmp_path):
        assert holder(tmp_path) == named


def test_a_trainer_of_an_earlier_version_is_seen(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / LOCK_FILE).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("process 7 on here")
        file.flush()
        with pytest.raises(InputError, match="is being trained by process 7 on here"), locked(tmp_path):
            pass
        assert holder(tmp_path) == "process 7 on here"
    with locked(tmp_path), (tmp_path / LOCK_FILE).open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    monkeypatch.setattr("patch_diffusion.runs.lock.FileLock", None)  # which needs to write
    assert holder(tmp_path) is None


@pytest.mark.parametrize("again", [False, True])
def test_a_locked_folder_that_is_moved_is_no_longer_the_one(tmp_path, again):
    folder = tmp_path / "run"
    folder.mkdir()
    with locked(folder) as is_ours:
        folder.rename(tmp_path / "moved")
        if again:
            folder.mkdir()
            (folder / LOCK_FILE).touch()
            (folder / HOLDER_FILE).touch()
        assert not is_ours() and holder(tmp_path / "moved")
    assert folder.exists() == again and (folder / HOLDER_FILE).exists() == again
    assert holder(tmp_path / "moved") is None


def test_where_there_are_no_locks_no_one_trains(tmp_path, monkeypatch):
    def acquire(lock, **_):
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(InputError, match="is being trained by another process"), locked(tmp_path):
        pass


def test_a_trainer_can_start_while_it_is_looked_at(tmp_path):
    (tmp_path / ".lock").touch()
    stop = threading.Event()

    def look():
        while not stop.is_set():
            holder(tmp_path)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(50):
            with locked(tmp_path):
                pass
    finally:
        stop.set()
        for looker in lookers:
            looker.join()


def test_a_sparkline_has_the_shape_of_its_curve():
    curve = Curve()
    assert sparkline(curve) == ""
    for step in range(64):
        curve.add(step, 63 - step)
    assert sparkline(curve, 8) == "█▇▆▅▄▃▂▁"
    flat = Curve()
    flat.add(1, 2.0)
    assert sparkline(flat) == "▁"


def test_a_run_that_is_complete(run, capsys):
    samples = {"step": 2, "samples": {"kernel": 0.5}}
    (run / "log.jsonl").write_text(text([{"step": 0, "note": "a note"}, line(1, 0.5), samples, line(2, 1.0)]))
    assert main(["info", str(run), "--follow"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "step 0: a note",
        "step 2: kernel distance 0.5",
        "100%  step 2  loss 0.375  10 images/s  0 s left",
        f"complete; to sample from it: patch-diffusion sample {run} --out pictures",
    ]


def test_its_log_as_json(run, capsys):
    lines = [{"step": 0, "note": "a"}, line(1, 0.5), line(2, 1.0), {"step": 2, "held_out": {"loss": 1.0}}]
    (run / "log.jsonl").write_text(text(lines))
    assert main(["info", str(run), "--follow", "--json"]) == 0
    assert [json.loads(one) for one in capsys.readouterr().out.splitlines()] == lines


def written_meanwhile(run, acts):
    """Does one thing after the other while the run is followed, each once the follower has had a look."""

    def work():
        for act in acts:
            time.sleep(0.2)
            act()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_run_is_followed_through_a_kill(run, capsys):
    log = run / "log.jsonl"

    def append(*lines):
        with log.open("a") as file:
            file.write(text(lines))

    lock = locked(run)
    again = locked(run)
    acts = [
        lock.__enter__,
        lambda: append({"step": 0, "note": "begun"}, line(1, 0.1), line(2, 0.2), line(3, 0.3)),
        lambda: lock.__exit__(None, None, None),
        again.__enter__,
        lambda: log.write_text(text([{"step": 0, "note": "begun"}, line(1, 0.1)])),
        lambda: append(line(2, 0.2, images=21), line(4, 1.0), {"step": 4, "note": "the last"}),
        lambda: again.__exit__(None, None, None),
    ]
    thread = written_meanwhile(run, acts)
    follow(run, json=True)
    thread.join()
    found = [json.loads(one) for one in capsys.readouterr().out.splitlines()]
    assert found == [
        {"step": 0, "note": "begun"},
        *[line(1, 0.1), line(2, 0.2), line(3, 0.3)],
        *[line(2, 0.2, images=21), line(4, 1.0)],
        {"step": 4, "note": "the last"},
    ]


def test_a_run_that_stands_still_says_how_to_continue(run, capsys, monkeypatch):
    monkeypatch.setattr(module, "_SILENT_SECONDS", 0.0)
    log = run / "log.jsonl"
    acts = [lambda: log.write_text(text([line(1, 0.5)])), lambda: log.write_text(text([line(1, 0.5), line(2, 1.0)]))]
    thread = written_meanwhile(run, acts)
    follow(run)
    thread.join()
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"not running; continue with: patch-diffusion train --out {run}"
    assert out[1:3] == [" 50%  step 1  loss 0.375  10 images/s  1 s left", out[2]] and out[2].startswith("100%")


@pytest.mark.parametrize("filled", [False, True])
def test_the_view_fits_eighty_columns(run, filled):
    history = History()
    if filled:
        levels = {"0.05": 0.91, "0.8": 0.2}
        for step in range(1, 60):
            more = {"loss_by_noise": levels, "skipped": 3, "images": 123_456 * step}
            history.add(line(10_000 * step, step / 1000, **more))
        history.add({"step": 9, "held_out": {"loss": 0.4, "by_noise": levels}})
        history.add({"step": 9, "samples": {"frechet": 2.5, "near_copies_held_out": 0.01, "near_copies@1/2": 0.123}})
        history.add({"step": 9, "note": "[bold]a long note[/bold] " * 9})
    shown_in = io.StringIO()
    console = Console(width=80, file=shown_in, force_terminal=True, color_system=None)
    console.print(_view(RunFolder(run), history, "process 1 on host" if filled else ""))
    shown = shown_in.getvalue()
    assert all(len(one.rstrip()) <= 80 for one in shown.splitlines())
    if filled:
        for word in (
            "6%",
            "step 590,000",
            "loss 64x64",
            "0.500",
            "noise 0.8",
            "held out",
            "0.400",
            "frechet",
            "2.500",
            "skipped",
            "▁",
        ):
            assert word in shown
        assert "[bold]a long note" in shown and "trained by process 1 on host" in shown
        assert len([one for one in shown.splitlines() if "images/s" in one and "left" in one]) == 1
    else:
        assert "no step is logged yet" in shown and "not running; continue with" in shown


@pytest.mark.slow
def test_on_a_terminal_it_is_drawn_in_place(run):
    (run / "log.jsonl").write_text(text([line(1, 0.5), line(2, 1.0)]))
    main_end, other_end = pty.openpty()
    command = [sys.executable, "-m", "patch_diffusion", "info", str(run), "--follow"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(command, stdout=other_end, stderr=subprocess.PIPE, env=environment) as process:
        os.close(other_end)
        found = b""
        while True:
            try:
                part = os.read(main_end, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            found += part
        assert process.wait(60) == 0 and process.stderr.read() == b""
    os.close(main_end)
    assert b"100%" in found and b"complete; to sample from it" in found and b"\x1b[" in found


def test_ctrl_c_leaves(run, monkeypatch, capsys):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", interrupt)
    assert main(["info", str(run), "--follow"]) == 130
    assert "interrupted; the run itself was not touched" in capsys.readouterr().err


def test_no_run(tmp_path):
    with pytest.raises(pd.InputError, match="holds no run"):
        follow(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe\x00garbage\n",
        b'{"step":1,"loss":5}\n',
        b'{"step": 2, "images": 8, "seconds": 1, "learning_rate": 0.1, "loss": {"8x12": "low"}}\n',
        b'{"step": 2, "images": 8, "seconds": 1, "learning_rate": null, "loss": {"8x12": 1}}\n',
        b'{"step": 2, "held_out": 5}\n{"step": 2, "samples": [1]}\n{"step": 2, "held_out": {"loss": null}}\n',
        b'{"step": ' + b"[" * 100_000 + b"\n",
        b'{"step": 2, "images": 1' + b"0" * 400 + b', "held_out": {"loss": 1}}\n',
        b'{"step": 2, "images": 8, "seconds": 1e999, "learning_rate": 0.1, "loss": {"8x12": 1}}\n',
        b'{"step": 2, "images": 8, "seconds": NaN, "learning_rate": 0.1, "loss": {"8x12": 1}}\n',
    ],
)
def test_every_reader_passes_over_damaged_lines(run, damage, capsys):
    log = run / "log.jsonl"
    log.write_bytes(text([line(1, 0.5), line(2, 0.6)]).encode() + damage)
    assert main(["info", str(run)]) == 0 and "2 steps, 20 images" in capsys.readouterr().out
    assert [one for one in read_log(log) if one] == LogTail(log).read().lines[:2] == [line(1, 0.5), line(2, 0.6)]
    assert last_measured(log) == line(2, 0.6) and read_measurements(log) == []
    assert Runs(run.parent).overview()[0]["step"] == 2
    Progress(log, show=False).continue_log(2)
    assert log.read_text() == text([line(1, 0.5), line(2, 0.6)])


def test_losses_that_earlier_versions_wrote_as_nan_are_none():
    assert parse_line(b'{"step": 1, "note": "", "spent": 1, "samples": {"kernel": NaN}}')["samples"] == {"kernel": None}
    assert parse_line(b'{"step": 1, "note": "", "x": 1e999, "y": -1e999, "z": 1e99}')["x"] is None


def test_sizes_of_any_name_are_sorted():
    measured = {**line(1, 0.5), "loss": {"8x12": 1.0, "\u00b2x8": 2.0, "9" * 5000: 3.0, "4x6": 4.0}}
    assert list(History.of([measured]).loss)[:2] == ["8x12", "4x6"]


def test_a_byte_that_is_no_utf8_in_a_note_spares_the_line(run):
    log = run / "log.jsonl"
    log.write_bytes(text([line(1, 0.5)]).encode() + b'{"step": 1, "note": "caf\xe9"}\n')
    assert list(read_log(log))[1] == {"step": 1, "note": "caf\ufffd"}
    Progress(log, show=False).continue_log(1)
    assert [json.loads(one) for one in log.read_text().splitlines()][1]["note"] == "caf\ufffd"
