"""Several runs on one page."""

import itertools
import json
import re

import numpy as np
import pytest

import patch_diffusion as pd
from browser import CHROMIUM, Browser
from comparable_runs import make_run
from patch_diffusion.cli import main
from patch_diffusion.runs.comparison import MOST_RUNS, write_comparison
from patch_diffusion.runs.page import STYLE
from test_report import ATTACK, Page


@pytest.fixture
def runs(tmp_path):
    """Of patches, complete; of whole images, half of it."""
    patches = make_run(tmp_path / "patches", metrics={"frechet": (12.0, 500), "kernel": (0.25, 500)})
    whole = make_run(
        tmp_path / "whole",
        end=0.5,
        speed=0.5,
        loss=0.4,
        sizes=("16x16",),
        options={"patches": {"whole": 1.0}, "batch": 16, "steps": 200},
        metrics={"frechet": (10.0, 1000)},
    )
    return [patches, whole]


def rows(text, name):
    """The cells of the row of a table."""
    found = re.search(rf'<th scope="row">{re.escape(name)}</th>((?:<td>[^<]*</td>)*)', text)
    assert found, name
    return re.findall(r"<td>([^<]*)</td>", found[1])


def test_only_what_differs_is_told_of_the_settings(runs, tmp_path):
    text = write_comparison(runs, tmp_path / "a.html").read_text()
    table = text[text.index("Settings that differ") : text.index("So far")]
    assert rows(table, "patches.whole") == ["0.5", "1"] and rows(table, "batch") == ["auto", "16"]
    assert table.count('scope="row"') == 2
    same = [make_run(tmp_path / name) for name in ("one", "two")]
    assert ">none</div>" in write_comparison(same, tmp_path / "b.html").read_text()


def test_what_was_seen_and_reached(runs, tmp_path):
    text = write_comparison(runs, tmp_path / "a.html").read_text()
    assert rows(text, "steps") == ["200", "100"] and rows(text, "true images seen") == ["6,400", "3,200"]
    assert rows(text, "of them as patches") == ["3,200", "1,600"] and rows(text, "pixels seen")[0] == "1,000,000"
    assert rows(text, "FLOPs") == ["2e+11", "1e+11"] and rows(text, "parameters") == ["123,456", "123,456"]
    assert rows(text, "images a second") == ["32", "16"] and rows(text, "pixels a second") == ["5,000", "2,500"]
    assert rows(text, "trained for") == ["3 min 20 s", "3 min 20 s"]
    assert rows(text, "training loss, 8x8")[1] == "" and rows(text, "held-out loss") == ["0.3267", "0.5021"]
    assert "complete" in text and "50.0% of its budget" in text
    held_out = text[text.index("Held-out loss by noise") : text.index("Training loss by noise")]
    assert rows(held_out, "sigma 0.1") == ["0.307", "0.482"] and "sigma 0.5" not in held_out
    assert rows(text[text.index("Training loss by noise") :], "sigma 0.5") == ["0.307", "0.482"]


def test_curves_are_over_images_and_over_time(runs, tmp_path):
    page = Page(write_comparison(runs, tmp_path / "a.html"))
    charts = [json.loads(script) for script in page.scripts if script.startswith("{")]
    ends = [(chart["over"], [curve[-1][0] for curve in chart["curves"]]) for chart in charts]
    assert ends == [
        ("image", [6400, 3200]),  # of whole images
        ("image", [6400]),  # of patches
        ("image", [6400, 3200]),  # held out
        ("minute", [pytest.approx(200 / 60, rel=1e-5), pytest.approx(200 / 60, rel=1e-5)]),
        ("minute", [pytest.approx(200 / 60, rel=1e-5)]),
        ("minute", [pytest.approx(200 / 60, rel=1e-5), pytest.approx(200 / 60, rel=1e-5)]),
    ]


def test_samples_stand_beside_those_of_the_same_fraction(runs, tmp_path):
    page = Page(write_comparison(runs, tmp_path / "a.html"))
    shown = page.text[page.text.index("same seeds") : page.text.index("Evaluated")]
    assert re.findall(r"(\d+)% of the budget", shown) == ["50", "25"]
    first, half, quarter = re.split(r"\d+% of the budget", shown)
    assert "A patches step 200" in first and "B whole step 100" in first  # the newest of each
    assert "A patches step 100" in half and "B whole step 100" in half
    assert "A patches step 50" in quarter and "B whole step 50" in quarter
    alone = [make_run(tmp_path / "late", samples=0), runs[1]]
    found = Page(write_comparison(alone, tmp_path / "b.html")).text
    assert "A late none yet B whole step 100" in found and "of the budget" not in found[found.index("same seeds") :]


def test_evaluations_that_cannot_be_compared_say_why(runs, tmp_path):
    text = write_comparison(runs, tmp_path / "a.html").read_text()
    assert rows(text, "frechet") == ["12 (10.8 to 13.2)", "10 (9 to 11)"]
    assert rows(text, "kernel") == ["0.25 (0.225 to 0.275)", ""]
    assert rows(text, "samples") == ["500", "1000"] and "where their settings agree" in text
    (runs[1] / "evaluation.json").write_text((runs[0] / "evaluation.json").read_text())
    (runs[1] / "other.json").write_text("{")
    assert "where their settings agree" not in write_comparison(runs, tmp_path / "a.html").read_text()


def test_losses_of_other_images_are_told_apart(tmp_path):
    other = make_run(tmp_path / "b", options={"data": {"source": "cats.zip"}}, facts={"resolution": (32, 32)})
    found = Page(write_comparison([make_run(tmp_path / "a"), other], tmp_path / "c.html")).text
    assert "data.source differs: these losses" in found and "resolution differs: these losses" in found


def test_what_has_no_log_and_what_is_damaged(runs, tmp_path):
    new = make_run(tmp_path / "new", end=0, samples=0)
    with (runs[0] / "log.jsonl").open("a") as file:
        file.write("{\n[]\n")
    page = Page(write_comparison([*runs, new], tmp_path / "a.html"))
    assert "C new no step is logged" in page.text and "A patches: 2 of 26 lines of its log are damaged" in page.text


def test_what_comes_from_runs_is_text_and_nothing_is_loaded(tmp_path):
    evil = make_run(tmp_path / "<b onerror=1>", sizes=("<i>", "16x16"), options={"data": {"source": ATTACK}},
                    metrics={"<u>": (1.0, 1)})  # fmt: skip
    path = write_comparison([make_run(tmp_path / "a"), evil], tmp_path / "c.html")
    page = Page(path)
    assert not {tag for tag, _ in page.tags} & {"i onerror", "u"} and page.text.count(ATTACK) == 1
    assert all("onerror" not in attributes for _, attributes in page.tags)
    places = [value for _, found in page.tags for name, value in found.items() if name in ("src", "href")]
    assert places and all(place.startswith("data:image/png;base64,") for place in places)
    assert not re.search(r"https?://|@import|url\(", path.read_text())


def test_as_a_command(runs, tmp_path, capsys):
    out = tmp_path / "new" / "compare.html"
    assert main(["info", *map(str, runs), "--report", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"runs": [str(run) for run in runs], "report": str(out)}
    before = out.read_text()
    assert main(["info", "--report", str(out), str(tmp_path)]) == 0  # a folder of runs, as that of a race
    assert f"the report is in {out}" in capsys.readouterr().err and out.read_text() == before
    assert main(["info", str(runs[0]), "--report"]) == 0 and (runs[0] / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        ("info --report", 2, "--report needs RUN"),
        ("info --follow --json", 2, "--follow needs RUN"),
        ("info A --follow --json OUT.json", 2, "give --json without a file"),
        ("info A --json CONFIG", 1, "would be overwritten"),
        ("info A B", 2, "say where, as in --report compare.html"),
        ("info A B --report", 2, "say where, as in --report compare.html"),
        ("info ALL --report", 1, "holds 2 runs"),
        ("info A B --report OUT.pdf", 2, "info does not take"),
        ("info A A --report OUT.html", 1, "patches is given twice"),
        ("info A NONE --report OUT.html", 1, "none does not exist"),
        ("info A EMPTY --report OUT.html", 1, "empty is not a run and holds none"),
        ("info A BROKEN --report OUT.html", 1, "broken/config.json"),
        ("info A B --follow", 2, "several runs"),
    ],
)
def test_mistakes_are_one_line(runs, tmp_path, capsys, words, status, reason):
    out = tmp_path / "out"
    (tmp_path / "elsewhere" / "empty").mkdir(parents=True)
    places = {"A": runs[0], "B": runs[1], "ALL": tmp_path, "NONE": out / "none", "EMPTY": tmp_path / "elsewhere/empty",
              "BROKEN": out / "broken", "OUT.html": out / "a.html", "OUT.pdf": out / "a.pdf",
              "OUT.json": out / "a.json", "CONFIG": runs[0] / "config.json"}  # fmt: skip
    (out / "broken").mkdir(parents=True)
    (out / "broken" / "config.json").write_text("{")
    assert main([str(places.get(word, word)) for word in words.split()]) == status
    error = capsys.readouterr().err
    assert reason in error and len(error.strip().splitlines()) == 1, error
    assert not (out / "a.html").exists()


def test_not_more_than_can_be_told_apart(tmp_path):
    with pytest.raises(pd.InputError, match="2 to 12 runs are compared on a page, not 13"):
        write_comparison([tmp_path / str(num) for num in range(MOST_RUNS + 1)], tmp_path / "a.html")
    many = [make_run(tmp_path / "same" / f"{num}", loss=0.3, samples=0) for num in range(MOST_RUNS)]
    text = write_comparison(many, tmp_path / "a.html").read_text()
    ends = [float(top) for top in re.findall(r'<em class="c\d(?: dashed)?" style="left:[\d.]+%;top:([\d.]+)%', text)]
    first = sorted(ends[:MOST_RUNS])
    assert len(first) == MOST_RUNS and first[0] >= 0 and first[-1] <= 100
    assert min(b - a for a, b in itertools.pairwise(first)) > 7  # no letter lies on another


# Machado et al. 2009: what is seen without the long, the middle or the short cones, from linear RGB.
SEEN = {
    "all": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_are_told_apart_by_everyone(scheme, seen):
    """By their distances in Oklab, of which 0.02 is just seen."""
    texts = re.findall(r"--c\d:#([0-9a-f]{6})", STYLE)[6 * scheme : 6 * scheme + 6]
    values = np.array([[int(text[place : place + 2], 16) for place in (0, 2, 4)] for text in texts]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    cones = np.clip(linear @ np.transpose(SEEN[seen]), 0, 1) @ np.transpose(
        [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
    )
    found = np.cbrt(cones) @ np.transpose(
        [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
    )
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(found, 2)) > 0.09


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_in_a_browser(runs, tmp_path):
    path = write_comparison(runs, tmp_path / "compare.html")
    with Browser(tmp_path / "browser") as browser:
        browser.open(path.as_uri())
        shown = "[...document.querySelectorAll('[data-shown]')].filter(e => !e.hidden).map(e => e.innerText)"
        assert [text.split(" over")[0].strip() for text in browser.wait(f"({shown}.length === 2) && {shown}")] == [
            "Training loss, 16x16",
            "Loss of held-out images",
        ]
        for name, value in (("over", "minutes"), ("loss", "8x8")):
            browser.run(
                f"(e => {{ e.value = '{value}'; e.dispatchEvent(new Event('change')) }})"
                f"(document.querySelector('[name={name}]'))"
            )
        first, second = browser.run(shown)
        assert "8x8" in first and "minutes" in first and "held-out" in second and "minutes" in second
        for width in (360, 1280):
            browser.resize(width)
            assert browser.run("document.documentElement.scrollWidth") <= width
        assert not browser.errors and all(url.startswith(("file:", "data:", "about:")) for url in browser.requests)
