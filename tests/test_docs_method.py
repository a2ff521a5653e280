"""docs/method.md: its code runs, its numbers are those of the schedule, and its figures are what the script draws."""

import base64
import importlib
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

import patch_diffusion as pd

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "method.md").read_text(encoding="utf-8")
FIGURES = re.findall(r"\]\((method-[\w-]+\.svg)\)", PAGE)


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "site")
    return importlib.import_module("figures")


def committed(name):
    return (DOCS / name).read_text(encoding="utf-8")


def pictures(figure):
    """The pictures in a figure, in its order."""
    encoded = re.findall(r'href="data:image/png;base64,([^"]+)"', figure)
    return [Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB") for each in encoded]


def without_pictures(figure):
    return re.sub(r'href="data:[^"]+"', "", figure)


def test_the_code(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "method.md", "exec"), {})
    said = re.findall(r"# (\(\d.*?\)):", code)
    assert capsys.readouterr().out.splitlines() == [f"torch.Size([{shape[1:-1]}])" for shape in said]
    assert len(said) == 2


def test_the_numbers_of_the_schedule():
    schedule = pd.PatchSchedule()
    sizes = schedule.sizes_for((64, 64))
    cost = {size.shape[0]: size.growth * size.shape[0] ** 2 / 64**2 for size in sizes}
    named = {64: ("whole images", "1"), 32: ("half the side", "1/2"), 16: ("a quarter of the side", "1/4")}
    for size in sizes:
        words, pixels = named[size.shape[0]]
        assert f"| {words} | {size.probability:.0%}".replace("%", " %") in PAGE
        assert f"| {size.num_images(64)} | {pixels} |" in PAGE and cost[size.shape[0]] == eval(pixels)
    average = sum(size.probability * cost[size.shape[0]] for size in sizes)
    images = sum(size.probability * size.growth for size in sizes)
    assert f"a step costs {average:.2f} of a step on whole images, and shows the network {images:.1f} times" in PAGE
    summed = pd.PatchSchedule(weight="area").sizes_for((64, 64))
    share = summed[0].probability * summed[0].weight / sum(size.probability * size.weight for size in summed)
    assert f"make up {share:.0%} of the objective".replace("%", " %") in PAGE


def test_the_passes_of_sampling():
    calls = []

    def denoise(noisy, sigma):
        calls.append(sigma)
        return torch.zeros_like(noisy)

    steps = pd.Sampling().settled(pd.Denoiser(lambda x, c_noise, labels: x)).steps
    pd.heun(denoise, torch.ones(1, 1, 2, 2), pd.karras_sigmas(steps, 0.002, 80.0))
    assert f"{steps} steps of Heun's method, which are\n{len(calls)} passes" in PAGE


def test_what_differs_from_the_published_recipe():
    paper, small = pd.PRESETS["paper"], pd.PRESETS["small"]
    assert (paper.patches.weight, small.patches.weight) == ("area", "patch")
    assert (small.noise.p_mean, small.noise.p_std, small.noise.weight) == (0.0, 1.6, "learned")
    assert (paper.noise.sigma_data, paper.noise.mean_data, small.noise.mean_data) == (0.5, (0.0,), None)
    assert (paper.optimizer.kind, paper.optimizer.weight_decay, small.optimizer.kind) == ("adamw", 0.0, "muon")
    assert (paper.batch, small.batch, paper.patches.whole, small.patches.whole) == (256, 16, 0.5, 0.5)
    assert small.batch * 45**2 <= small.batch_pixels < small.batch * 46**2


def test_figures_are_small_and_ask_for_nothing():
    assert len(FIGURES) == 3
    for name in FIGURES:
        figure = committed(name)
        root = ElementTree.fromstring(figure)
        assert len(figure) < 40_000 and float(root.attrib["viewBox"].split()[2]) <= 480
        assert not re.search(r"<script|(?:href|src)=\"(?!data:)|url\(", figure)
        sizes = [float(size) for size in re.findall(r'font-size="([\d.]+)"', figure)]
        assert min(sizes) >= 12.5  # to be read at the width of a telephone


def test_the_figure_of_the_schedule_is_drawn_anew(figures):
    assert figures.schedule_figure() == committed("method-schedule.svg")


def test_the_figure_of_crops_is_drawn_anew(figures, tmp_path):
    """From the picture in it."""
    before = committed("method-crops.svg")
    path = tmp_path / "picture.png"
    pictures(before)[0].save(path)
    after = figures.crops_figure(figures.open_picture(path))
    assert without_pictures(after) == without_pictures(before)
    assert [each.tobytes() for each in pictures(after)] == [each.tobytes() for each in pictures(before)]


def test_crops_and_coordinates_in_the_figure_belong_together(figures):
    shown = pictures(committed("method-crops.svg"))
    image, _, crops = shown[0], shown[1], shown[2:]
    for place, (pixels, x, y) in enumerate(zip(*[iter(crops)] * 3, strict=True)):
        side = 64 >> place
        assert pixels.size == x.size == y.size == (side, side)
        (left,) = [at for at in range(64 - side + 1) if x.tobytes() == whole(figures, 0, at, 0, side).tobytes()]
        (top,) = [at for at in range(64 - side + 1) if y.tobytes() == whole(figures, 1, 0, at, side).tobytes()]
        assert image.crop((left, top, left + side, top + side)).tobytes() == pixels.tobytes()


def whole(figures, axis, left, top, side):
    """A part of the whole coordinate grid."""
    return figures.coloured(pd.coordinate_grid(64, 64)[axis]).crop((left, top, left + side, top + side))


@pytest.mark.slow
def test_the_figure_of_sampling(figures, make_model):
    """By a model of random weights: as many pictures, at the same places, as in the page's."""
    model = make_model()
    drawn, before = figures.sampling_figure(model), committed("method-sampling.svg")
    assert without_pictures(drawn) == without_pictures(before)
    shown = pictures(drawn)
    assert len(shown) == 2 + 2 * 6 + 2 * 6
    samples = pd.generate(model, figures.SEEDS, steps=18)
    for sample, together, apart in zip(samples, shown[14:20], shown[20:], strict=True):
        assert together.tobytes() == figures.to_image(sample.visible).convert("RGB").tobytes()
        assert together.tobytes() != apart.tobytes()
    quarter = torch.tensor(list(shown[20].crop((0, 0, 6, 4)).getchannel(0).tobytes())).view(4, 6)
    assert (quarter - alone(model, figures.SEEDS[0], 4, 6)[0, 0].int()).abs().max() <= 1


@torch.no_grad()
def alone(model, seed, height, width):
    """The upper left part of an image, made without the rest."""
    noise = torch.randn((1, 8, 12), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    coords, labels = pd.coordinate_grid(8, 12)[:, :height, :width], torch.tensor([seed % model.num_classes])

    def denoise(noisy, sigma):
        return model(noisy.float(), sigma.float(), coords, labels).to(noisy)

    return model.codec.decode(pd.heun(denoise, 80 * noise[None, :, :height, :width], pd.karras_sigmas(18, 0.002, 80.0)))


def test_what_is_missing_is_said_and_left(figures, tmp_path, capsys):
    figures.main(["--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["method-schedule.svg"]
    said = capsys.readouterr().out
    assert "give --picture" in said and "give --run" in said and "emoji-datasource-google" in figures.__doc__
