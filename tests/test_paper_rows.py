"""Every row of benchmarks/paper.md, executed as it is written, at less than a thousandth of its budget, on a CPU.

What is replaced: the data by a few made images in the same folders, the autoencoder by one of random weights and the
same shapes, 200 million images by 20, the batch of 512 by 4, 50,000 samples by 50 (16 of latents), 50 steps by 2,
8 processes by 1, and the extractor inception, whose weights are not here, by random. Options at the end make the
network narrow: 62 million parameters take too long on a CPU. All else is as written, so a wrong option or name fails.
"""

import json
import math
import re
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import patch_diffusion as pd
from needs import need
from patch_diffusion.cli import main
from patch_diffusion.presets import PRESETS
from patch_diffusion.runs.model import build_network
from patch_diffusion.training.budget import training_flops
from test_pages import lines, read

PAGE = read("benchmarks/paper.md")
COMMANDS = list(dict.fromkeys(tuple(words[1:]) for words in lines(PAGE)))
TINY = ["--network.width", "8", "--network.blocks", "1", "--samples", "0", "--checkpoints", "1", "--track"]
SMALLER = {
    "--images": {"200000000": "20", "75000000": "7"},
    "--batch": {"512": "4"},
    "--engine.processes": {"8": "1"},
    "--processes": {"8": "1"},
    "--samples": {"50000": "50"},
    "--steps": {"50": "2"},
    "--extractor": {"inception": "random"},
}
FOLDERS = {  # what a user brings: sub-folders, and the size of an image
    "celeba": ([""], (218, 178)),
    "ffhq": (["00000", "01000"], (128, 128)),
    **{f"afhqv2/train/{kind}": ([""], (96, 96)) for kind in ("cat", "dog", "wild")},
    "bedroom": (["0/0", "0/1"], (256, 300)),
    "church": (["0/0", "0/1"], (256, 300)),
    "imagenet": (["n01440764", "n01443537"], (300, 260)),
}
NUM_IMAGES = 6
PEAKS = {"V100": 125e12, "A100": 312e12, "H100": 989e12}
UTILISATION = 0.15


def of(verb):
    return [words for words in COMMANDS if words[0] == verb]


def value(words, option):
    return words[words.index(option) + 1]


PREPARED = {words[2]: words for words in of("prepare")}
TRAINED = {value(words, "--out"): words for words in of("train")}
EVALUATED = {run: [words for words in of("evaluate") if words[1] == run] for run in TRAINED}
LATENTS = {run for run, words in TRAINED.items() if words[1].endswith("-latents")}


def tables():
    """The cells of the tables of results, by their heading: a dict for each row."""
    for block in re.findall(r"^\| run \|.*\n\|[-:| ]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE):
        head = re.findall(rf"^(\| run \|.*)\n\|[-:| ]+\n{re.escape(block)}", PAGE, re.MULTILINE)[0]
        names = [cell.strip() for cell in head.strip("|").split("|")]
        for line in block.splitlines():
            yield dict(zip(names, (cell.strip() for cell in line.strip("|").split("|")), strict=True))


def test_every_row_has_each_stage():
    named = [f"runs/{re.findall('``(.*?)``', row['run'])[0]}" for row in tables()]
    assert set(named) == set(TRAINED) and len(TRAINED) == 19
    assert sum(map(len, EVALUATED.values())) == len(of("evaluate")) == len(named) + 1  # one with published statistics
    assert len({value(words, "--json") for words in of("evaluate")}) == len(of("evaluate"))
    for run, words in TRAINED.items():
        assert words[1] in PREPARED
        for evaluate in EVALUATED[run]:
            assert ("--data" in evaluate) == (run in LATENTS)
            assert run not in LATENTS or value(evaluate, "--data") == PREPARED[words[1]][1]


def test_budgets_are_the_published_ones():
    for run, words in TRAINED.items():
        few = words[1] in ("cat-64.zip", "dog-64.zip", "wild-64.zip")
        assert (value(words, "--images"), value(words, "--batch")) == ("75000000" if few else "200000000", "512"), run
        assert PRESETS[value(words, "--preset")].data.held_out == 0 or value(words, "--held-out") == "0"
    for words in of("evaluate"):
        given = [value(words, option) for option in ("--metrics", "--extractor", "--samples", "--steps")]
        assert given == ["frechet", "inception", "50000", "50"]


@cache
def network_of(preset):
    with torch.device("meta"):  # only counted
        channels = 4 if "latent" in preset else 3
        return pd.Denoiser(build_network(PRESETS[preset].network, channels, 0, augment_channels=0, coords=True), 0.5)


@cache
def flops(preset, side):
    return training_flops(network_of(preset), 4 if "latent" in preset else 3, (side, side))


def costs(preset, whole):
    """The operations of a training step for one image: the mean over the sizes of the schedule."""
    side = 32 if "latent" in preset else 64
    schedule = pd.PatchSchedule(whole=whole, sizes=PRESETS[preset].patches.sizes)
    sizes = schedule.sizes_for((side, side), network_of(preset).stride)
    images = [(size.probability * size.growth, size.shape[0]) for size in sizes]
    return sum(share * flops(preset, shown) for share, shown in images) / sum(share for share, _ in images)


def hours(words, gpu):
    whole = float(value(words, "--patches.whole"))
    return int(value(words, "--images")) * costs(value(words, "--preset"), whole) / (PEAKS[gpu] * UTILISATION * 3600)


@pytest.mark.slow
def test_the_operations_are_counted_again():
    told = re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \| ([\d.]+) \|(?: ([\d.]+) times.*)?", PAGE, re.MULTILINE)
    assert len(told) == 8
    for preset, whole, giga, times in told:
        cost = costs(preset, float(whole))
        assert f"{cost / 1e9:.1f}" == giga
        assert not times or f"{costs(preset, 1.0) / cost:.1f}" == times
    used = 2e8 * costs("paper", 1.0) / (16 * 48.5 * 3600)
    assert (
        f"{UTILISATION:.0%}".replace("%", " %") in PAGE
        and f"are {100 * used / PEAKS['V100']:.0f} % of that peak" in PAGE
    )
    a_pass = {"pixels": costs("paper", 1.0) / 3, "latents": costs("adm-latent-32", 1.0) / 3}
    pixels, latents = (50_000 * 99 * each / (PEAKS["A100"] * UTILISATION * 3600) for each in a_pass.values())
    assert f"{pixels:.1f} hours of an A100 for 64 x 64, {latents:.1f} for latents, {2 * latents:.1f} with" in PAGE


@pytest.mark.slow
def test_the_hours_and_thresholds_follow():
    for row in tables():
        words = TRAINED[f"runs/{re.findall('``(.*?)``', row['run'])[0]}"]
        for gpu in ("A100", "H100"):
            (told,) = (cell for name, cell in row.items() if name.startswith(gpu))
            assert told == f"{hours(words, gpu):.0f}", row
        if row.get("hours"):
            assert row["GPU hours: V100"] == f"{16 * float(row['hours']):.0f}"
        if row["agrees up to"]:
            most = Decimal(row["FID, read in"].split()[0]) * Decimal("1.05")
            assert row["agrees up to"] == str(most.quantize(Decimal("0.01"), ROUND_HALF_UP)), row


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a user brings, and the archives and runs that the commands make of it."""
    folder, random = tmp_path_factory.mktemp("rows"), np.random.default_rng(0)
    for name, (parts, size) in FOLDERS.items():
        for index in range(NUM_IMAGES):
            path = folder / name / parts[index % len(parts)] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(64 + 127 * random.integers(0, 2, (4, 4, 3), dtype=np.uint8))  # of deviation 0.5
            small.resize(size[::-1], Image.Resampling.NEAREST).save(path)
    np.savez(folder / "ffhq-64x64.npz", mu=np.zeros(368), sigma=np.eye(368))
    return folder


@pytest.fixture
def prepared(folder):
    """``prepared(name)``: runs the commands that make an archive, or a folder of latents, once."""

    def prepare(name):
        words = PREPARED[name]
        if Path(name).exists():
            return
        if words[1] in PREPARED:
            prepare(words[1])
            autoencoder()
        assert main([*words]) == 0

    def autoencoder():
        if Path("sd-vae").exists():
            return
        torch.manual_seed(0)
        need("diffusers", "hub").AutoencoderKL(  # 8 times smaller and 4 channels, as Stable Diffusion's
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[4] * 4,
            latent_channels=4,
            norm_num_groups=2,
        ).save_pretrained("sd-vae")

    return prepare


def smaller(words):
    """A command with a budget that suits a test; what it does not know how to shrink stays as it is written."""
    return [SMALLER.get(before, {}).get(word, word) for before, word in zip(("", *words), words, strict=False)]


ALWAYS = ("celeba-p0", "celeba-progressive", "ffhq-patches", "cat-whole", "imagenet-latents")
"""The runs of rows that a test always trains; the others have the same options with other data or shares."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "run", [run if Path(run).name in ALWAYS else pytest.param(run, marks=pytest.mark.scheduled) for run in TRAINED]
)
def test_the_row_runs(run, folder, prepared, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    train = TRAINED[run]
    prepared(train[1])
    assert main([*smaller(train), *TINY]) == 0, capsys.readouterr().err
    config = json.loads(Path(run, "config.json").read_text())
    whole = float(value(train, "--patches.whole"))
    assert (config["patches"]["whole"], config["patches"]["coords"]) == (whole, whole < 1)
    assert (config["noise"]["p_mean"], config["noise"]["sigma_data"]) == (-1.2, 0.5)
    assert config["data"]["held_out"] == 0
    assert pd.load(run).num_classes == (2 if "imagenet" in run else 0)
    for words in EVALUATED[run]:
        short = smaller(words)
        if run in LATENTS:
            short[short.index("--samples") + 1] = "16"
        assert main(short) == 0, capsys.readouterr().err
        found = json.loads(Path(value(words, "--json")).read_text())["metrics"]["frechet"]
        assert math.isfinite(found["value"])
        published = "--reference" in words
        assert found["settings"].get("reference_images") == (None if published else NUM_IMAGES)
