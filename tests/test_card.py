import json
import shutil

import pytest
import yaml

import patch_diffusion as pd
from patch_diffusion.cli import main
from patch_diffusion.interop.card import read_figures

pytestmark = pytest.mark.slow

TINY = (
    "--network.width 8 --network.multipliers 1 2 --network.attention 1 --network.blocks 1 --batch 4 --samples 0 "
    "--checkpoints 2 --log-every 1"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secret place") / "run"
    arguments = ["train", "digits", "--out", str(folder), "--steps", "4", "--held-out", "0.05", *TINY.split()]
    assert main(arguments) == 0
    return folder


def card(run, out, **options):
    pd.export_model(run, out, **options)
    _, front, text = (out / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


@pytest.mark.slow
def test_the_front_matter(trained, tmp_path):
    front, text = card(trained, tmp_path / "a", license="cc-by-4.0")
    assert front["license"] == "cc-by-4.0" and front["library_name"] == "diffusers"
    assert front["pipeline_tag"] == "unconditional-image-generation" and "patch-diffusion" in front["tags"]
    assert "cc-by-4.0, as its publisher says" in text
    front, text = card(trained, tmp_path / "b")
    assert "license" not in front and "None is given" in text


def test_what_it_says(trained, tmp_path):
    _, text = card(trained, tmp_path / "digits-16")
    assert text.startswith("\n# digits-16\n")
    for row in (
        f"| images | {json.loads((trained / 'config.json').read_text())['model']['num_images']:,} |",
        "| shape | 16 x 16 x 1 |",
        "| classes | 10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 |",
        "| name | digits |",
        "| held out | 0.05 of them |",
        "| seen | 4 steps, ",
        "| network.width | 8 |",
        "| sampled by | solver heun, schedule karras |",
    ):
        assert row in text, row
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    held_out = [line["held_out"]["loss"] for line in lines if "held_out" in line]
    assert f"| loss of whole held-out images | {held_out[-1]:.4g} |" in text
    assert "The quality of its samples was not measured" in text
    assert "secret place" not in text  # where it was trained is nobody's business
    for heading in ("Use", "Model", "Data", "Training", "Figures", "Intended use and limits", "Licence", "Method"):
        assert text.count(f"\n## {heading}\n") == 1


def test_figures_are_those_of_the_exported_step(trained, tmp_path):
    _, text = card(trained, tmp_path / "early", checkpoint=2)
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    held_out = {line["step"]: line["held_out"]["loss"] for line in lines if "held_out" in line}
    assert "| seen | 2 steps, " in text and "at step 2" in text
    assert f"| loss of whole held-out images | {held_out[2]:.4g} |" in text


def test_what_was_evaluated(trained, tmp_path):
    found = {"fid": 12.345678, "settings": {"samples": 5000, "features": "random | convolutions"}, "data": "x" * 99}
    (tmp_path / "evaluation.json").write_text(json.dumps(found))
    _, text = card(trained, tmp_path / "out", evaluation=tmp_path / "evaluation.json")
    assert "| fid | 12.3457 |" in text and "| settings.samples | 5000 |" in text
    assert "| settings.features | random \\| convolutions |" in text and "xxx" not in text
    assert "was not measured" not in text
    (tmp_path / "nothing.json").write_text("{}")
    with pytest.raises(pd.InputError, match="holds no figures"):
        read_figures(tmp_path / "nothing.json")


def test_a_run_without_a_log_and_with_strange_names(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "log.jsonl").unlink()
    config = json.loads((run / "config.json").read_text())
    config["model"]["class_names"] = ["<b>|x", *"123456789"]
    config["data"]["source"] = "/home/me/private/photos.zip"
    (run / "config.json").write_text(json.dumps(config))
    _, text = card(run, tmp_path / "out")
    assert "None were measured" in text and "\\<b\\>\\|x" in text
    assert "| name | photos.zip |" in text and "/home/me" not in text
    config["model"]["num_images"] = 0  # as of a run that was imported
    (run / "config.json").write_text(json.dumps(config))
    _, text = card(run, tmp_path / "imported")
    assert "Imported, not trained here" in text and "photos.zip" not in text and "from scratch" not in text
