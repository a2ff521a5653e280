import json
import shlex

import pytest

from patch_diffusion.cli import main
from patch_diffusion.cli.race import Race
from patch_diffusion.cli.tables import race_table

TINY = (
    "--network.width 8 --network.multipliers 1 2 --network.attention 1 --network.blocks 1 --batch 4 --moments 2 "
    "--steps 4 --resolution 8"
)


@pytest.fixture
def run(capsys):
    """``run("race ...")``: exit status, stdout and stderr."""

    def call(line, **places):
        words = [str(places.get(word, word)) for word in shlex.split(line)]
        status = main(words)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def raced(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raced") / "race"
    line = f"race digits --out {folder} {TINY} --tune 3 --arm few 'patches.whole=0.1 patches.sizes=1/2=1'"
    assert main(shlex.split(line)) == 0
    return folder


def parsed(line):
    return Race.parse(shlex.split(f"digits --out race {line}"))


@pytest.mark.slow
def test_the_table_fits_80_columns(raced, run):
    line = f"race digits --out DIR {TINY} --tune 3 --arm few 'patches.whole=0.1 patches.sizes=1/2=1'"
    status, out, err = run(line, DIR=raced)
    assert status == 0 and "whole" in out and "patches" in out and "few" in out
    assert all(len(row) <= 80 for row in out.splitlines()), out
    assert str(raced / "race.html") in err
    status, text, _ = run(f"{line} --json", DIR=raced)
    content = json.loads(text)
    assert status == 0 and content == json.loads((raced / "race.json").read_text())
    assert content["plan"]["tuning"] == {"whole": 3.0} and content["seeds"] == [0]
    assert content["plan"]["arms"]["few"]["patches"]["sizes"] == {"1/2": 1.0}
    assert all(content["plan"]["arms"][name]["data"]["held_out"] == 0.05 for name in content["plan"]["arms"])


@pytest.mark.slow
def test_samples_are_measured_at_the_same_moments(run, tmp_path):
    line = f"race digits --out DIR {TINY} --tune 0 --watch.metrics kernel memorization --watch.samples 8"
    status, out, _ = run(line, DIR=tmp_path / "race")
    assert status == 0 and "final kernel distance of whole" in " ".join(out.split())
    content = json.loads((tmp_path / "race" / "race.json").read_text())
    for name, by_seed in content["points"].items():
        assert [point["step"] for point in by_seed["0"]] == [2, 4]
        assert all({"loss", "kernel", "near_copies"} <= set(point) for point in by_seed["0"])
        assert content["distances"]["kernel"]["final"][name]["loss"] == by_seed["0"][-1]["kernel"]
    assert "Kernel distance" in (tmp_path / "race" / "race.html").read_text()
    status, _, err = run(line.replace("--watch.samples 8", "--watch.samples 9"), DIR=tmp_path / "race")
    assert status == 1 and "watch.samples" in err


@pytest.mark.slow
def test_long_names_and_several_seeds_fit_too(raced):
    content = json.loads((raced / "race.json").read_text().replace('"few"', '"a-rather-long-name-of-an-arm"'))
    content["plan"]["arms"] = {**content["plan"]["arms"]}
    for final in content["standings"]["final"].values():
        final["deviation"] = 0.0123
    table = race_table(content)
    assert "±0.0123" in table and "a-rather-long…" in table
    assert all(len(row) <= 80 for row in table.splitlines()), table


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "option", "value"),
    [
        ("patches.whole=0.25", "patches.whole", 0.25),
        ("--patches.whole 0.25", "patches.whole", 0.25),
        ("patches.sizes=1/2=0.5 1/4=0.5", "patches.sizes", {"1/2": 0.5, "1/4": 0.5}),
        ("patches.coords=False", "patches.coords", False),
        ("network.multipliers=1 2 2", "network.multipliers", [1, 2, 2]),
        ("optimizer.learning_rate=1e-4", "optimizer.learning_rate", 1e-4),
        ("optimizer.learning-rate=1e-4", "optimizer.learning_rate", 1e-4),
        ("batch=6 engine.precision=bf16", "engine.precision", "bf16"),
    ],
)
def test_an_arm_s_options(text, option, value):
    from patch_diffusion.config_dict import flat_options

    race = parsed(f"--arm mine '{text}'")
    changed = flat_options(race.configs["mine"])
    assert changed[option] == value
    assert option in race.given["mine"]
    assert flat_options(race.configs["patches"])[option] != value


def test_options_go_to_all_arms_and_each_arm_s_own_over_them():
    race = parsed("--batch 8 --minutes 3 --patches.whole 0.3 --arm mine 'batch=4'")
    assert {name: config.batch for name, config in race.configs.items()} == {"whole": 8, "patches": 8, "mine": 4}
    assert {name: config.patches.whole for name, config in race.configs.items()} == {
        "whole": 1,
        "patches": 0.3,
        "mine": 0.3,
    }
    assert all((config.minutes, config.steps) == (3, None) for config in race.configs.values())
    assert "batch" in race.given["whole"] and "out" not in race.given["whole"]


@pytest.mark.slow
def test_which_arms_race():
    assert list(parsed("").configs) == ["whole", "patches"]
    assert list(parsed("--arm a batch=4 --arm b batch=8 --arms b a").configs) == ["b", "a"]
    assert list(parsed("--patches.whole 1 --arm quarter patches.whole=0.25").configs) == ["whole", "quarter"]


@pytest.mark.slow
def test_held_out_is_a_share_or_data():
    for line, share, data in (
        ("", None, None),
        ("--held-out 0.2", 0.2, None),
        ("--data.held-out=1e-1", 0.1, None),
        ("--held-out others.zip", None, "others.zip"),
        ("--preset paper", None, None),
        ("--held-out=2023/photos", None, "2023/photos"),
        ("--held-out-data digits", None, "digits"),
    ):
        race = parsed(line)
        assert (race.options.data.held_out, race.held_out_data) == (share, data), line


def one_line(text):
    return len(text.strip().splitlines()) == 1 and "Traceback" not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("race digits", 2, "needs --out DIR"),
        ("race --out NEW", 2, "needs DATA"),
        ("race digits --out NEW --patches.whol 0.3", 2, "perhaps you meant --patches.whole"),
        ("race digits --out NEW --arm few patches.whol=0.3", 2, "--arm few: "),
        ("race digits --out NEW --arm few patches.whol=0.3", 2, "perhaps you meant --patches.whole"),
        ("race digits --out NEW --arm few patches.whole=much", 2, "--arm few: "),
        ('race digits --out NEW --arm few "patches.whole=\'"', 2, "cannot be read: no closing quotation"),
        ("race digits --out NEW --arm few batch=4 --arm few batch=8", 2, "an arm of this name already"),
        ("race digits --out NEW --arm whole batch=4", 2, "leave it out of --arms"),
        ("race digits --out NEW --arm few/many batch=4", 2, "not 'few/many'"),
        ("race digits --out NEW --arm same ''", 2, "arms 'patches' and 'same' are the same"),
        ("race digits --out NEW --arm long steps=7", 2, "a budget of steps and arm 'whole' one of minutes"),
        ("race digits --out NEW --arm few samples=3", 2, "samples has no effect in a race"),
        ("race digits --out NEW --samples 3", 2, "samples has no effect in a race"),
        ("race digits --out NEW --watch.times 3", 2, "watch.times has no effect in a race"),
        ("race digits --out NEW --arm few 'watch.samples=3'", 2, "in a race all have the same images"),
        ("race digits --out NEW --checkpoint-by kernel", 2, "checkpoint_by has no effect in a race"),
        ("race digits --out NEW --seed 3", 2, "takes --seeds"),
        ("race digits --out NEW --arms whole", 2, "two arms or more, not 1"),
        ("race digits --out NEW --arms whole pathes", 2, "no arm 'pathes'; did you mean 'patches'"),
        ("race digits --out NEW --arms whole whole", 2, "names 'whole' twice"),
        ("race digits --out NEW --arm few batch=4 --arms few patches --tune 3", 2, "add --tune-all"),
        ("race digits --out NEW --tune-all --tune 0", 2, "leave one of them out"),
        ("race digits --out NEW --tune -1", 1, "the budget of tuning is above 0, not -1"),
        ("race digits --out NEW --seeds 0-x", 1, "not '0-x'"),
        ("race digits --out NEW --moments 0", 1, "moments is at least 1"),
        ("race digits --out NEW --steps 2 --held-out 0", 1, "needs images that are held out"),
        ("race digits --out NEW --held-out 0.1 --held-out-data digits", 1, "leave out the share"),
        ("race digits --out NEW --held-out NOWHERE", 1, "there is no data at"),
        ("race digits --out NEW --held-out digits --resolution 8 --steps 1 --minutes 2", 1, "not steps and minutes"),
        ("race NOWHERE --out NEW", 1, "there is no data at"),
        ("race digits --out OTHER", 1, "holds other files (thesis.tex) and no race"),
        ("race digits --out FILE", 1, "is a file"),
        ("race digits --out NEW --network.width 7", 1, "network.width is a multiple of 4"),
        ("race digits --out NEW --engine.processes 2", 1, "one process"),
        ("race digits --out RACED --steps 9", 1, "other options"),
    ],
)
def test_mistakes_get_one_line_and_nothing_is_written(raced, run, tmp_path, line, status, message):
    (tmp_path / "other").mkdir()
    for file in ("file", "other/thesis.tex"):
        (tmp_path / file).write_text("")
    places = {name.upper(): tmp_path / name for name in ("new", "nowhere", "other", "file")}
    before = sorted(tmp_path.rglob("*")), (raced / "race.json").read_bytes()
    if "RACED" in line:
        line += " --arm few 'patches.whole=0.1 patches.sizes=1/2=1'"
    found, out, err = run(line, RACED=raced, **places)
    assert found == status and message in err and one_line(err) and not out, err
    assert (sorted(tmp_path.rglob("*")), (raced / "race.json").read_bytes()) == before


def test_help_does_not_need_torch_and_fits(capsys):
    with pytest.raises(SystemExit):
        main(["race", "--help-all"])
    text = capsys.readouterr().out
    assert "--arm NAME" in text and "--held-out-data" in text and "--patches.whole" in text
    assert all(len(row) <= 80 for row in text.splitlines()), [row for row in text.splitlines() if len(row) > 80]


@pytest.mark.slow
def test_torch_is_not_imported_for_help():
    import subprocess
    import sys

    code = (
        "import sys; from patch_diffusion.cli import main\n"
        "try: main(['race', '--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'PIL' not in sys.modules and 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
