import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

import patch_diffusion as pd
import patch_diffusion.files
from patch_diffusion.cli import main
from patch_diffusion.runs.chart import chart, even, number
from patch_diffusion.runs.floor import LinearFloor
from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.runs.history import Curve, History, Point
from patch_diffusion.runs.pictures import as_data, evenly_spaced
from patch_diffusion.runs.report import write_report

ATTACK = "<script>alert('&')</script>"


class Page(HTMLParser):
    """What a browser sees: tags with their attributes, texts, and the contents of scripts."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.texts, self.scripts, self._in = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._in = [*self._in, tag] if tag in ("script", "style") else self._in

    def handle_endtag(self, tag):
        self._in = [open_tag for open_tag in self._in if open_tag != tag]

    def handle_data(self, data):
        kept = self.scripts if "script" in self._in else [] if "style" in self._in else self.texts
        kept.append(data)

    def curves(self):
        """Of each chart: its title, and (step, value) of each curve by name."""
        return [json.loads(script)["curves"] for script in self.scripts if script.startswith("{")]


def measured(step, loss=0.5, **more):
    return {
        "step": step,
        "images": 4 * step,
        "seconds": 0.1 * step,
        "spent": step / 100,
        "learning_rate": 1e-3,
        "loss": {"8x12": loss, "4x6": 2 * loss},
        **more,
    }


@pytest.fixture
def make_run(make_trainer):
    """``make_run(lines)``: a run folder with that log."""

    def make(lines=None, images=None):
        trainer = make_trainer(**({} if images is None else {"images": images}))
        trainer.run.write_config(trainer.config, trainer.facts)
        if lines is not None:
            trainer.run.log_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return trainer.run.path

    return make


def test_a_run_that_has_not_begun(make_run):
    path = write_report(make_run())
    page = Page(path)
    assert path.name == "report.html" and "No step is logged yet" in page.text and not page.curves()
    assert "64 of 8 x 12, 3 channels" in page.text and "none yet" in page.text


def test_the_curves_are_those_of_the_log(make_run):
    levels = {"0.05": 0.9, "10": 0.2, "1.5": 0.4}
    lines = [measured(step, 1 / step, loss_by_noise=levels, skipped=step) for step in (1, 2, 4)]
    held_out = {"loss": 0.75, "by_noise": {"0.5": 0.7}}
    lines.append({"step": 4, "images": 16, "seconds": 1, "spent": 0.04, "held_out": held_out})
    page = Page(write_report(make_run(lines)))
    sizes, noise, mean, held_out, _, rate = page.curves()
    assert sizes == [[[1, "1"], [2, "0.5"], [4, "0.25"]], [[1, "2"], [2, "1"], [4, "0.5"]]]
    assert [curve[0][1] for curve in noise] == ["0.9", "0.4", "0.2"]  # by rising level
    assert mean == [[[4, "0.75"]]] and held_out == [[[4, "0.7"]]] and rate[0][-1] == [4, "0.001"]
    assert "skipped steps" in page.text and "4.0%" in page.text


def test_the_linear_floor_is_a_dashed_line(make_run):
    """One for the mean and one for each level, within the chart, also where the loss is still far above."""
    by_noise = {"0.5": 0.7, "6.4": 0.9}
    run = make_run([measured(1), *({"step": step, "held_out": {"loss": 0.8, "by_noise": by_noise}} for step in (1, 4))])
    without = write_report(run).read_text()
    assert "guide" not in without.partition("</style>")[2] and "linear floor" not in without
    levels = {"0.5": 0.4, "6.4": 0.5}
    floor = LinearFloor(0.45, (0.4, 0.5), levels, dict.fromkeys(levels, (0.3, 0.6)), 100, 64)
    floor.write(RunFolder(run).floor_file)
    page = write_report(run).read_text()
    lines = re.findall(r'class="guide (\w+)" d="M0.0 ([\d.]+)H1000.0"', page)
    assert [colour for colour, _ in lines] == ["c0", "n0", "n7"]
    assert all(0 < float(place) < 1000 for _, place in lines)
    assert page.count("dashed: the linear floor") == 2
    found = pd.describe(run)
    assert found["linear_floor"]["by_noise"] == levels and found["by_noise"] == by_noise


def test_a_step_is_told_to_its_last_digit():
    assert "[1234567.0," in chart("Loss", {"16x16": Curve.of([Point(1, 0.5, 0.5, 0.5), Point(1234567, 0.4, 0.4, 0.4)])})


def test_what_was_measured_of_samples_has_curves(make_run):
    held_out = {"loss": 0.75, "by_noise": {"0.5": 0.7}, "by_size": {"4x6": 0.8, "8x12": 0.75}}
    lines = [{"step": step, "held_out": held_out} for step in (1, 2)]
    samples = {"frechet": 12.5, "near_copies": 0.25, "near_copies_held_out": 0.125, "near_copies@1/2": 0.5}
    lines += [{"step": step, "samples": samples | {"frechet": 25 / step}} for step in (1, 2)]
    page = Page(write_report(make_run([measured(1), *lines])))
    by_size, _, distance, near = page.curves()[2:6]
    assert by_size == [[[1, "0.75"], [2, "0.75"]], [[1, "0.8"], [2, "0.8"]]]  # the largest first
    assert distance == [[[1, "25"], [2, "12.5"]]]
    assert [curve[-1] for curve in near] == [[2, "0.25"], [2, "0.125"], [2, "0.5"]]
    assert "12.5 Frechet distance" in page.text and "25.0% near copies" in page.text
    assert "kernel" not in page.text.lower().partition("settings")[0]


def test_losses_that_are_shown(make_run):
    """The newest held-out loss and the best, and the newest loss of each size, also of one the last line lacks."""
    held_out = [{"step": step, "held_out": {"loss": loss}} for step, loss in ((1, 0.5), (2, 0.25), (3, 0.75))]
    run = make_run([measured(1, 0.125), {**measured(2), "loss": {"4x6": 0.375}}, *held_out])
    text = Page(write_report(run)).text
    for tile in (
        "0.75 held-out loss, step 3",
        "0.25 best held-out loss, step 2",
        "0.125 training loss, 8x12 (whole images)",
        "0.375 training loss, 4x6",
    ):
        assert tile in text
    found = pd.describe(run)
    assert found["losses"] == {"8x12": 0.125, "4x6": 0.375}
    assert found["held_out"] == {"step": 3, "loss": 0.75, "best_step": 2, "best_loss": 0.25}
    make_run([*held_out[:2], measured(2)])
    assert "best held-out loss" not in Page(write_report(run)).text  # it is the newest


def test_settings_by_who_chose_them(tmp_path, capsys):
    command = f"train digits --preset small --out {tmp_path / 'run'} --steps 1 --samples 0 --network.multipliers 1 1"
    assert main([*command.split(), "--network.width", "8", "--batch", "4"]) == 0
    text = Page(write_report(tmp_path / "run")).text.partition(" Settings ")[2]
    text = text.replace("_ ", "_").replace(". ", ".")  # long names may be broken there
    given, chosen, preset = (text.index(title) for title in ("Given", "Chosen for images", "Of the preset small"))
    places = {
        "batch 4": (chosen, preset),
        "steps 1": (given, chosen),
        "network.attention 1": (chosen, preset),
        "noise.sigma_data 0.69": (chosen, preset),
        "data.held_out 0.05": (chosen, preset),
        "optimizer.decay linear": (chosen, preset),
        "network.width 8": (given, chosen),
    }
    for setting, (low, high) in places.items():
        assert low < text.index(setting) < high, setting
    assert "minutes" not in text[given:preset]  # the budget of the preset, which was replaced


def test_one_line_is_enough(make_run):
    page = Page(write_report(make_run([measured(1)])))
    assert page.curves()[0] == [[[1, "0.5"]], [[1, "1"]]] and "40 images a second" in page.text


def test_what_comes_from_the_run_is_text(make_run, images):
    images = pd.ImageSet(images.pixels, images.labels, class_names=(ATTACK, "b"))
    run = make_run([{"step": 0, "note": ATTACK}, measured(1, loss_by_noise={"1": 1}), measured(2)], images)
    lines = run.joinpath("log.jsonl").read_text().replace("8x12", ATTACK).replace("'", "\\u0027")
    run.joinpath("log.jsonl").write_text(lines)
    page = Page(write_report(run))
    assert page.text.count(ATTACK) == 4  # class, size in a tile and in a legend, and note
    assert not any("alert" in script for script in page.scripts)
    assert all("onerror" not in attributes for _, attributes in page.tags)


def test_nothing_is_loaded(make_run):
    run = make_run([measured(1)])
    (run / "samples").mkdir()
    Image.new("RGB", (8, 8)).save(run / "samples" / "step-00000001.png")
    path = write_report(run)
    places = [value for _, found in Page(path).tags for name, value in found.items() if name in ("src", "href")]
    assert len(places) == 1 and places[0].startswith("data:image/png;base64,")
    assert not re.search(r"https?://|@import|url\(", path.read_text())


def test_a_damaged_log(make_run):
    run = make_run([measured(1), measured(2)])
    with (run / "log.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "lo\n[1]\n\xff\xfe\n{"step": 4, "loss": {"8x12": "a"}}\n{"step": 5, "loss"')
    page = Page(write_report(run))
    assert "4 of 6 lines of the log are damaged" in page.text
    assert [step for step, _ in page.curves()[0][0]] == [1, 2]


def test_warnings_stand_at_the_top(make_run):
    page = Page(write_report(make_run([{"step": 3, "note": "WARNING: low"}, {"step": 4, "note": "hm"}, measured(4)])))
    assert page.text.index("step 3: WARNING: low") < page.text.index("Curves") < page.text.index("hm")


@pytest.mark.parametrize(
    ("seen", "spent", "words"),
    [
        (52, 1, "52 images seen: samples may still be blurry"),
        (99_999, 0.5, "99,999 images seen so far: samples may"),
        (100_000, 1, ""),
    ],
)
def test_a_run_that_saw_few_images_says_so(make_run, seen, spent, words):
    text = Page(write_report(make_run([measured(4) | {"images": seen, "spent": spent}]))).text
    assert words in text and ("samples may still be blurry" in text) == bool(words)
    assert ("more --steps: the run continues" in text) == (seen == 52)


@pytest.mark.slow
def test_very_many_notes_and_lines_keep_the_page_small(make_run):
    lines = [measured(step, 1 + np.sin(step)) for step in range(1, 20_001)]
    lines += [{"step": 20_000, "note": f"note {index};"} for index in range(1000)]
    path = write_report(make_run(lines))
    page = Page(path)
    assert path.stat().st_size < 100_000 and all(len(curve) <= 128 for curve in page.curves()[0])
    assert "note 0;" in page.text and "note 999;" in page.text and "800 notes between" in page.text


@pytest.mark.slow
@given(st.integers(1, 3000), st.integers(0, 2**32 - 1))
def test_a_thinned_curve_has_the_means_and_the_ranges(num, seed):
    values = np.random.default_rng(seed).normal(size=num)
    curve = Curve(most=8)
    for step, value in enumerate(values):
        curve.add(step, value)
    points = curve.points()
    per_point = 1
    while per_point * 8 < num:
        per_point *= 2
    parts = [values[first : first + per_point] for first in range(0, num, per_point)]
    assert len(points) == len(parts) <= 8
    for place, (point, part) in enumerate(zip(points, parts, strict=True)):
        assert point.value == pytest.approx(part.mean()) and (point.least, point.most) == (part.min(), part.max())
        assert point.step == pytest.approx(place * per_point + (len(part) - 1) / 2)


def test_the_speed_is_that_of_the_last_lines():
    history = History.of(measured(step) | {"images": 7 * step, "seconds": step * step} for step in range(1, 21))
    assert history.images_per_second == pytest.approx(7 * 9 / (20**2 - 11**2))
    assert history.seconds_left == pytest.approx((20**2 - 11**2) * 80 / 9)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))  # spans that a double can still divide beside such numbers
def test_marks_of_an_axis_are_round_and_inside(low, span):
    marks = list(even(low, low + span))
    assert all(low - 1e-6 * span <= mark <= low + 1.000001 * span for mark in marks) and len(marks) <= 7
    if len(marks) > 1:
        step = marks[1] - marks[0]
        assert float(f"{step / 10 ** np.floor(np.log10(step) + 1e-6):.3g}") in (1, 2, 5, 10)


@pytest.mark.parametrize(
    "values", [[3.0], [0.0], [2.0, 2.0], [-1.0, 4.0], [1e-9, 1e9], [0.0, 1e-3], [5e-324, 1.0], [float("nan"), 1.0]]
)
def test_every_value_lies_in_its_chart(values):
    curve = Curve()
    for step, value in enumerate(values):
        curve.add(step, value)
    for from_zero in (False, True):
        html = chart("a", {"b": curve}, from_zero=from_zero)
        places = [float(y) for path in re.findall(r' d="M([^"]*)"', html) for y in re.findall(r" ([-\d.]+)", path)]
        assert places and all(0 <= place <= 1000 for place in places)
        heights = [float(top) for top in re.findall(r"top:([-\d.]+)%", html)]
        assert heights and all(0 <= top <= 100 for top in heights)


def test_numbers_are_short():
    found = [number(value) for value in (0, 0.5, 1 / 3, 1234.5, 1e-3, 5e-4, 1.25e-7, 1e9, -0.5)]
    assert found == ["0", "0.5", "0.333", "1,234", "0.001", "5e-4", "1.2e-7", "1e+09", "-0.5"]


def test_samples_are_the_first_the_last_and_some_between(make_run):
    assert evenly_spaced(range(3), 8) == [0, 1, 2] and evenly_spaced(range(100), 4) == [0, 33, 66, 99]
    run = make_run([measured(1)])
    (run / "samples").mkdir()
    for step in range(1, 31):
        Image.new("L", (4, 4), step).save(run / "samples" / f"step-{step:08d}.png")
    (run / "samples" / "step-00000031.png").write_bytes(b"\x89PNG\r\n")
    pictures = [found["src"] for tag, found in Page(write_report(run)).tags if tag == "img"]
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))[0, 0] for uri in pictures]
    assert len(shown) == 7 and shown[0] == 1 and shown == sorted(set(shown))  # the broken last one is left out


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_large_picture_is_shown_smaller(tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 1200, len(mode)), dtype=np.uint8)
    Image.fromarray(pixels.squeeze(-1) if len(mode) == 1 else pixels).save(tmp_path / "a.png")
    uri = as_data(tmp_path / "a.png")
    assert len(uri) < 600_000
    assert Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size == (512, 640)


def test_a_full_disk_leaves_the_report_before(make_run, monkeypatch):
    run = make_run([measured(1)])
    before = write_report(run).read_bytes()

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(patch_diffusion.files, "sync", full)
    with pytest.raises(OSError, match="No space"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert not [path for path in run.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.slow
def test_what_a_trained_run_shows(make_trainer):
    trainer = make_trainer(samples=2, checkpoints=2, log_every=1)
    trainer.fit(steps=4)
    page = Page(write_report(trainer.run.path))
    assert "Complete , 4 steps" in page.text and "step 2" in page.text and "step 4" in page.text
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 2
    assert page.text.count("MB") == 2


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("info RUN --report", "RUN/report.html"),
        ("info --report RUN", "RUN/report.html"),
        ("info RUN --report OUT/new/a.html", "OUT/new/a.html"),
        ("info --report OUT/a.htm RUN --json", "OUT/a.htm"),
    ],
)
def test_as_a_command(make_run, tmp_path, capsys, words, place):
    places = {"RUN": str(make_run([measured(1)])), "OUT": str(tmp_path)}
    for name, path in places.items():
        words, place = words.replace(name, path), place.replace(name, path)
    assert main(words.split()) == 0
    captured = capsys.readouterr()
    assert place in (captured.out if "--json" in words else captured.err)
    assert "40 images a second" in Page(tmp_path / place).text


def test_a_wrong_name_and_no_run(make_run, tmp_path, capsys):
    with pytest.raises(pd.InputError, match=r"written as \.html, not as 'a\.pdf'"):
        write_report(make_run(), tmp_path / "a.pdf")
    assert main(["info", str(tmp_path / "none"), "--report"]) == 1
    assert main(["info", str(tmp_path), "--report", "--follow"]) == 2
    assert "take one of them" in capsys.readouterr().err
