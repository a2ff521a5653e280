"""Numbers, categories and vectors that a model is told by name: read, normalised, dropped, sampled by, guided by."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import patch_diffusion as pd
from image_files import write_shard, write_zip
from needs import need
from patch_diffusion.cli import main
from patch_diffusion.config import Config, Data
from patch_diffusion.data.attributes import Attribute, Attributes, keep_some, vectors_of, wanted_of
from patch_diffusion.data.reading.attributes import attribute_of
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.errors import InputError, Note
from patch_diffusion.evaluation.samples import classes_like, conditions_like
from patch_diffusion.evaluation.stream import stream_of_model
from patch_diffusion.files import read_tensors, write_tensors
from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.sampling.options import Sampling
from refusal import refused

NUM = 20
SIZES = [float(f"{size:.2f}") for size in np.random.default_rng(0).uniform(2, 9, NUM)]
SHADES = ["light" if index % 3 else "dark" for index in range(NUM)]
AGE = Attribute("age", mean=(40.0,), deviation=(10.0,), lowest=(20.0,), highest=(60.0,))
COLOUR = Attribute("colour", categories=("blue", "green", "red"))
WIDTH = {"attribute_channels": 6, "label_dropout": 0.3}
PLACE = Attribute("place", mean=(0.0, 1.0), deviation=(1.0, 2.0), lowest=(-1.0, -1.0), highest=(1.0, 3.0))


@pytest.fixture
def folder(make_folder):
    return make_folder(NUM, (8, 8), "L")


def table(path, rows, first="file,size,shade"):
    path.write_text("\n".join([first, *(",".join(map(str, row)) for row in rows)]))
    return str(path)


@pytest.fixture
def csv(tmp_path):
    return table(tmp_path / "table.csv", [(f"{i:03}.png", SIZES[i], SHADES[i]) for i in range(NUM)])


def values_of(images):
    return [values.tolist() for values in images.attributes.values]


def test_numbers_are_normalised_and_words_are_categories(folder, csv):
    images = pd.open_images(folder, conditions=csv)
    size, shade = images.columns
    assert (size.name, size.categories, shade.categories) == ("size", (), ("dark", "light"))
    assert size.mean[0] == pytest.approx(np.mean(SIZES), abs=1e-6)
    assert (size.lowest[0], size.highest[0]) == pytest.approx((min(SIZES), max(SIZES)), abs=1e-6)
    encoded = images.attributes_of(np.arange(NUM))
    assert encoded.shape == (NUM, 5)
    assert torch.equal(encoded[:, [0, 2]], torch.ones(NUM, 2))
    assert encoded[:, 1].mean().item() == pytest.approx(0, abs=1e-6)
    assert encoded[:, 1].std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert encoded[0, 3:].tolist() == pytest.approx([math.sqrt(2), 0])


def test_a_choice_of_columns_in_any_case(folder, csv):
    assert [column.name for column in pd.open_images(folder, conditions=[csv, "Shade"]).columns] == ["Shade"]


@pytest.mark.parametrize("kind", ["zip", "inside the folder", "shards"])
def test_the_same_from_every_kind_of_files(folder, csv, tmp_path, kind):
    expected = values_of(pd.open_images(folder, conditions=csv))
    if kind == "zip":
        found = pd.open_images(write_zip(tmp_path / "a.zip", folder), conditions=csv)
    elif kind == "inside the folder":
        (folder / "table.csv").write_bytes((tmp_path / "table.csv").read_bytes())
        found = pd.open_images(folder, conditions="table.csv")
        assert not any("skipped" in note for note in found.notes)
    else:
        write_shard(tmp_path / "a.tar", [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())])
        found = pd.open_images(f"wds:{tmp_path}/*.tar", conditions=csv)
    assert values_of(found) == expected


def test_values_of_arrays_come_from_arrays(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (NUM, 1, 8, 8), np.uint8)
    vectors = np.random.default_rng(1).normal(size=(NUM, 3)).astype(np.float32)
    for name, values in (("pixels", pixels), ("vectors", vectors), ("size", np.array(SIZES))):
        np.save(tmp_path / f"{name}.npy", values)
    np.savez(tmp_path / "all.npz", images=pixels, vectors=vectors, size=np.array(SIZES), shade=np.array(SHADES))
    beside = [str(tmp_path / "vectors.npy"), str(tmp_path / "size.npy")]
    for images in (
        pd.open_images(tmp_path / "pixels.npy", conditions=beside),
        pd.open_images(tmp_path / "all.npz", conditions=["vectors", "size", "shade"]),
        pd.open_images(pixels, conditions={"vectors": vectors, "size": SIZES, "shade": SHADES}),
        pd.open_images([Image.fromarray(each[0]) for each in pixels], conditions={"vectors": vectors, "size": SIZES}),
    ):
        assert [len(column.mean) for column in images.columns][:2] == [3, 1]
        assert np.allclose(images.attributes.values[0], vectors)
        assert np.allclose(images.attributes.values[1][:, 0], SIZES)


def test_columns_of_a_table_of_the_hub():
    datasets = need("datasets")
    pictures = [Image.fromarray(np.full((8, 8), index, np.uint8)) for index in range(NUM)]
    columns = {"image": pictures, "size": SIZES, "shade": [index % 2 for index in range(NUM)]}
    features = datasets.Features(
        image=datasets.Image(), size=datasets.Value("float32"), shade=datasets.ClassLabel(names=["dark", "light"])
    )
    found = datasets.Dataset.from_dict(columns, features=features)
    images = pd.open_images(found, classes=False, conditions=["size", "shade"])
    assert images.columns[1].categories == ("dark", "light")
    with refused("data.conditions", "has no column 'sise'; did you mean 'size'"):
        pd.open_images(found, classes=False, conditions=["sise"])


def test_an_empty_cell_is_not_given(folder, tmp_path):
    rows = [(f"{i:03}.png", "" if i == 4 else SIZES[i], "" if i == 5 else SHADES[i]) for i in range(NUM)]
    images = pd.open_images(folder, conditions=table(tmp_path / "a.csv", rows))
    encoded = images.attributes_of(np.arange(NUM))
    assert encoded[4, :2].tolist() == [0, 0] and encoded[4, 2] == 1
    assert encoded[5, 2:].tolist() == [0, 0, 0] and encoded[5, 0] == 1


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([(f"{i:03}.png", 3, SHADES[i]) for i in range(NUM)], "size in .* has 3 for all images"),
        ([(f"{i:03}.png", "", SHADES[i]) for i in range(NUM)], "size in .* has no value"),
        ([(f"{i:03}.png", "nan" if i == 2 else i**2, SHADES[i]) for i in range(NUM)], "size in .* has nan in it"),
        ([(f"{i:03}.png", "tall" if i == 2 else i**2, SHADES[i]) for i in range(NUM)], "but has 'tall' in it"),
        ([(f"{i:03}.png", i**2, f"name {i}") for i in range(NUM)], "20 different words for 20 images"),
        ([(f"{i:03}.png", i**2, SHADES[i]) for i in range(NUM - 1)], "has no line for 1 of 20 images .first: 019.png"),
        ([(f"{i // 2:03}.png", i**2, SHADES[0]) for i in range(NUM)], "gives 000.png two sizes, 0 and 1"),
    ],
)
def test_tables_that_cannot_be_right(folder, tmp_path, rows, told):
    with pytest.raises(InputError, match=told):
        pd.open_images(folder, conditions=table(tmp_path / "a.csv", rows))


def test_files_that_cannot_be_right(folder, csv, tmp_path):
    with refused("data.conditions", "there is no file of conditions at other.csv"):
        pd.open_images(folder, conditions="other.csv")
    with refused("data.conditions", "is a CSV with the columns file and others"):
        pd.open_images(folder, conditions="vectors.npy")
    with pytest.raises(InputError, match="must name the columns file and hue, not file, size, shade"):
        pd.open_images(folder, conditions=[csv, "hue"])
    with refused("data.conditions", "for files give a CSV"):
        pd.open_images(folder, conditions={"size": SIZES})
    with refused("data.conditions", "size has 3 values, and the array has 20 images"):
        pd.open_images(np.zeros((NUM, 1, 8, 8), np.uint8), conditions={"size": [1, 2, 3]})
    with refused("data.conditions", "has no meaning for the digits"):
        pd.open_images("digits", conditions=csv)
    with refused("data.conditions", "vectors of 2 and 3 numbers"):
        attribute_of("place", [[1, 2], [1, 2, 3]], "the data")
    with refused("data.conditions", "image 1 of the data has NaN"):
        attribute_of("place", np.array([[1, 2], [1, np.nan]]), "the data")


def test_a_column_that_numbers_the_files_is_pointed_out(folder, tmp_path):
    rows = [(f"{i:03}.png", 100 + i, SHADES[i]) for i in range(NUM)]
    notes = pd.open_images(folder, conditions=table(tmp_path / "a.csv", rows)).notes
    assert any("the condition size of" in note and "numbers the images one by one" in note for note in notes)


def test_what_a_user_wants_is_checked():
    wanted, notes = wanted_of([AGE, COLOUR, PLACE], {"age": "50", "place": [0, 3]}, 2)
    first = next(iter(wanted))
    assert first == {"age": 50.0, "place": [0.0, 3.0]} and not notes
    assert vectors_of([AGE, COLOUR, PLACE], [first])[0].tolist() == [1, 1, 0, 0, 0, 0, 1, 0, 1]
    each, _ = wanted_of([AGE, COLOUR], {"age": [30, None, ""], "colour": "red"}, 3)
    assert list(each) == [{"age": 30.0, "colour": "red"}, {"colour": "red"}, {"colour": "red"}]
    assert wanted_of([AGE], {"age": 90}, 1)[1] == [
        "age 90 is far outside of the training images, which go from 20 to 60"
    ]
    assert not wanted_of([AGE], {"age": 75}, 1)[1]
    for given, told in (
        ({"agge": 3}, "no condition 'agge'; did you mean 'age'"),
        ({"colour": "rad"}, "no 'rad'; did you mean 'red'"),
        ({"age": "old"}, "is a finite number, not 'old'"),
        ({"age": math.inf}, "is a finite number"),
        ({"place": [1, 2, 3]}, "is a vector of 2 numbers, not 3"),
        ({"place": "1,2,3"}, "is a vector of 2 numbers, not 3"),
        ({"age": [1, 2, 3]}, "2 images need as many values of age, not 3"),
    ):
        with pytest.raises(InputError, match=told):
            wanted_of([AGE, COLOUR, PLACE], given, 2)
    with pytest.raises(InputError, match=r"trained without data\.conditions"):
        wanted_of([], {"age": 3}, 1)


def test_attributes_as_a_model_knows_them():
    own = replace(COLOUR, categories=("green", "red"))
    found = Attributes((own,), (torch.tensor([[0.0], [1.0], [math.nan]]),)).known_as([AGE, COLOUR])
    assert found.encode([0, 1, 2])[:, 2:].bool().tolist() == [
        [True, False, True, False],
        [True, False, False, True],
        [False] * 4,
    ]
    assert not found.encode([0, 1])[:, :2].any()
    unknown = Attributes((replace(COLOUR, categories=("pink", "red")),), (torch.zeros(3, 1),))
    with pytest.raises(InputError, match="has 'pink', which the model does not know"):
        unknown.known_as([COLOUR])
    with pytest.raises(InputError, match="of another kind"):
        Attributes((replace(AGE, name="colour"),), (torch.zeros(3, 1),)).known_as([COLOUR])


def test_each_is_dropped_by_itself():
    encoded = torch.ones(2, 9)
    kept = keep_some(encoded, [AGE, COLOUR, PLACE], torch.tensor([[True, False, True], [False, True, False]]))
    assert kept.tolist() == [[1, 1, 0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1, 0, 0, 0]]


@pytest.fixture
def told_images():
    """Pictures whose brightness is told, and whose colour is a category."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=generator)
    values = (torch.arange(64.0)[:, None] % 7, torch.arange(64.0)[:, None] % 3)
    columns = (attribute_of("age", values[0][:, 0].numpy(), "the data")[0], COLOUR)
    return pd.ImageSet(pixels, torch.arange(64) % 2, attributes=Attributes(columns, values))


@pytest.fixture
def trainer(told_images, make_trainer):
    def make(out="run", **options):
        return make_trainer(out, WIDTH, images=told_images, **options)

    return make


def test_batches_tell_each_image_its_own_and_drop_some(trainer, told_images):
    batches = trainer(batch=64).batches
    plan = batches.plan(batches_start())
    made = batches.make(plan, range(plan.num))
    _, indices = batches.feed.get(0, plan.first, plan.num)
    expected, told = told_images.attributes_of(indices), made.conditions.attributes
    assert told is not None
    given = torch.stack([told[:, 0], told[:, 2]], dim=1)
    assert torch.equal(told, keep_some(expected, told_images.columns, given.bool()))
    untold = batches.draw(plan).untold
    assert untold is not None
    assert torch.equal(given == 0, (untold[:, :2] < 0.3) | (untold[:, 2:] < 0.3))
    assert 0.3 < (given == 0).float().mean() < 0.7
    # What is hidden as a whole is hidden with the label.
    assert (made.conditions.labels[untold[:, 2] < 0.3] == -1).all()
    part = batches.make(plan, range(3, 9))
    assert torch.equal(part.conditions.attributes, told[3:9])


def batches_start():
    from patch_diffusion.training.batches import Position

    return Position(0, 0, {}, 0.0)


@pytest.mark.parametrize("network", ["unet", "dit", "edm2"])
def test_networks_hear_of_them(network):
    torch.manual_seed(0)
    made = {
        "unet": lambda: pd.UNet(1, 8, (1,), 1, attribute_channels=6),
        "dit": lambda: pd.DiT(1, 16, 1, 1, attribute_channels=6),
        "edm2": lambda: pd.EDM2UNet(1, 8, (1,), 1, attribute_channels=6),
    }[network]()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model = pd.Denoiser(made, 0.5).eval()
    noisy, coords = torch.randn(2, 1, 8, 8), pd.coordinate_grid(8, 8)

    def denoised(attributes):
        with torch.no_grad():
            return model(noisy, 1.0, Conditions(coords, attributes=attributes))

    assert not torch.equal(denoised(None), denoised(torch.ones(2, 6)))
    if network == "unet":
        assert torch.equal(denoised(None), denoised(torch.zeros(2, 6)))
    alone = denoised(torch.eye(6)[:2])
    assert torch.allclose(alone[:1], denoised(torch.eye(6)[:1].repeat(2, 1))[:1], atol=1e-6)
    assert made.label_dropout == 0.1


def test_a_run_stores_them_and_continues(trainer, make_trainer, told_images, tmp_path):
    trainer("whole").fit(steps=4)
    with trainer().in_laps(steps=4) as train_until:
        train_until(0.5)
    trainer().fit(steps=4)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert weights[0] == weights[1]
    facts = RunFolder(tmp_path / "run").read_config()[1]
    assert facts.attributes == told_images.columns
    model = pd.load(tmp_path / "run", device="cpu")
    assert model.columns == told_images.columns
    renamed = Attributes((replace(AGE, name="weight"), COLOUR), told_images.attributes.values)
    with pytest.raises(InputError, match="attributes"):
        make_trainer(images=replace(told_images, attributes=renamed), network=WIDTH).fit(steps=4)


def test_samples_are_what_is_asked_for(told_images):
    model = random_model(told_images.columns, num_classes=2)
    sampling, each = Sampling(steps=2), {"age": [3, 3, 3], "colour": ["red"] * 3}
    plain, told, again = (
        [sample.pixels for sample in pd.generate(model, range(3), sampling, labels=0, conditions=conditions)]
        for conditions in (None, {"age": 3, "colour": "red"}, each)
    )
    assert not all(map(torch.equal, plain, told)) and all(map(torch.equal, told, again))
    named = next(pd.generate(model, [0], sampling, conditions={"class": 0, "age": 3, "colour": "red"}))
    assert torch.equal(named.pixels, told[0]) and named.conditions == {"age": 3.0, "colour": "red"}
    with pytest.warns(Note, match="age 30 is far outside"):
        pd.generate(model, [0], sampling, conditions={"age": 30})


def test_guidance_by_each(told_images):
    model = random_model(told_images.columns, num_classes=2)

    def pixels(conditions=None, **options):
        told = {"age": 3, "colour": "red"} if conditions is None else conditions
        found = pd.generate(model, [0, 1], Sampling(steps=2, **options), labels=1, conditions=told)
        return torch.stack([sample.pixels for sample in found])

    plain = pixels()
    assert torch.equal(pixels(guidance={"age": 1, "class": 1}), plain)
    assert not torch.equal(pixels(guidance={"age": 3}), plain)
    assert not torch.equal(pixels(guidance={"age": 3}), pixels(guidance={"colour": 3}))
    # With a single condition, a scale of its own is the scale of all.
    alone = {"age": 3}
    sampled = [
        torch.stack(
            [
                sample.pixels
                for sample in pd.generate(
                    random_model(model.columns), [0], Sampling(steps=2, guidance=scale), conditions=alone
                )
            ]
        )
        for scale in (2.5, {"age": 2.5})
    ]
    assert torch.equal(*sampled)
    with refused("guidance", "no condition 'agge'; did you mean 'age'"):
        pixels(guidance={"agge": 2})
    with refused("guide", "leave crops out"):
        pixels(guidance={"age": 2}, guide="crops")
    with pytest.raises(InputError, match="a finite number"):
        Sampling(guidance={"age": math.inf})
    with refused("guidance", "guidance by conditions needs some"):
        next(pd.generate(random_model(model.columns), [0], Sampling(steps=2, guidance=2)))


def random_model(columns, **options):
    torch.manual_seed(0)
    network = pd.UNet(1, 8, (1, 2), 1, attribute_channels=6, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return pd.Denoiser(network, 0.5, resolution=(8, 8), columns=columns).eval()


def test_a_model_learns_what_it_is_told():
    """A tiny network on flat pictures whose grey is told: the grey of samples follows what is asked for."""
    torch.manual_seed(0)
    grey = torch.rand(256) * 2 - 1
    denoiser = pd.Denoiser(pd.UNet(1, 8, (1,), 1, dropout=0, attribute_channels=2, coords=False), 0.58, coords=False)
    optimizer = torch.optim.Adam(denoiser.parameters(), 1e-2)
    for _ in range(100):
        rows = torch.randint(256, (32,))
        told = torch.stack([torch.ones(32), grey[rows] / 0.58], dim=1)
        clean = grey[rows][:, None, None, None].expand(-1, 1, 4, 4)
        losses = pd.denoising_loss(denoiser, clean, Conditions(attributes=told), torch.rand(32) * 4 + 0.5)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    asked = torch.linspace(-0.9, 0.9, 16)
    told = torch.stack([torch.ones(16), asked / 0.58], dim=1)
    with torch.no_grad():
        found = denoiser.eval()(torch.randn(16, 1, 4, 4) * 20, 20.0, Conditions(attributes=told)).mean(dim=(1, 2, 3))
    assert torch.corrcoef(torch.stack([asked, found]))[0, 1] > 0.95


def test_on_the_command_line(folder, csv, tmp_path, capsys):
    run = ["--steps", "2", "--network.width", "8", "--network.multipliers", "1", "--batch", "4", "--samples", "0"]
    assert main(["train", str(folder), "--out", str(tmp_path / "run"), "--data.conditions", csv, *run]) == 0
    sample = ["sample", str(tmp_path / "run"), "--steps", "1", "--out", str(tmp_path / "out")]
    assert main([*sample, "--seeds", "0-1", "--condition", "size=3", "shade=dark", "--guidance", "size=2"]) == 0
    entries = json.loads((tmp_path / "out" / "samples.json").read_text())["samples"]
    assert [entry["conditions"] for entry in entries] == [{"size": 3.0, "shade": "dark"}] * 2
    assert entries[0]["settings"]["guidance"] == {"size": 2.0}
    wanted = table(tmp_path / "wanted.csv", [(4, 3, "dark"), (9, "", "light")], "seed,size,shade")
    assert main([*sample, "--conditions", wanted, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 2
    entries = json.loads((tmp_path / "out" / "samples.json").read_text())["samples"]
    assert {entry["seed"]: entry.get("conditions") for entry in entries}[9] == {"shade": "light"}
    assert main([*sample, "--conditions", wanted, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["already"] == 2
    for words, told in (
        (["--condition", "size"], "a condition is given as NAME=VALUE"),
        (["--condition", "size=3", "--conditions", wanted], "size is given by --condition and in"),
        (["--conditions", wanted, "--seeds", "0-3"], "has a column of seeds"),
        (["--condition", "sice=3"], "no condition 'sice'; did you mean 'size'"),
        (["--guidance", "size"], "guidance"),
    ):
        assert main([*sample, *words]) in (1, 2)
        assert told in capsys.readouterr().err, words


def test_config_and_docs_know_the_option():
    assert Config().data.conditions is None
    assert Data(conditions=("a.csv", "b")).conditions == ("a.csv", "b")


def test_samples_that_are_measured_are_told_what_the_images_are(told_images):
    model = random_model(told_images.columns, num_classes=2)
    model.codec = told_images.codec
    conditions, labels = conditions_like(told_images, model, 12, 5), classes_like(told_images, model, 12, 5)
    assert conditions is not None and labels is not None
    pairs = {(row % 7, row % 3, row % 2) for row in range(64)}
    assert {
        (told["age"], ("blue", "green", "red").index(told["colour"]), label)
        for told, label in zip(conditions, labels, strict=True)
    } <= pairs
    assert conditions_like(replace(told_images, attributes=None), model, 3, 5) is None
    stream = stream_of_model(model, range(4), conditions=conditions[:4], labels=labels[:4], sampling=Sampling(steps=1))
    one = next(pd.generate(model, [2], Sampling(steps=1), labels=labels[2], conditions=conditions[2]))
    assert torch.equal(torch.cat(list(stream.part(0)))[2], one.pixels)


@pytest.fixture
def exported(make_trainer, told_images, tmp_path):
    """A run with conditions and random weights."""
    make_trainer("run", WIDTH, images=told_images).fit(steps=1)
    weights = read_tensors(tmp_path / "run" / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    write_tensors(
        tmp_path / "run" / "model.safetensors",
        {name: each + 0.05 * torch.randn(each.shape, generator=generator) for name, each in weights.items()},
    )
    return tmp_path / "run"


@pytest.mark.slow
def test_exported_pipelines_are_told_them(exported, tmp_path, code_folder):
    diffusers = need("diffusers", "hub")
    pd.export_model(exported, tmp_path / "model")
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model", trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    model = pd.load(exported, device="cpu")
    for scale in (1.0, 2.0):
        for conditions in ({"age": 3, "colour": ["red", "blue"]}, {"colour": "green"}, None):
            found = pd.generate(model, [0, 1], Sampling(steps=2, guidance=scale), labels=1, conditions=conditions)
            expected = torch.stack([sample.pixels for sample in found])
            asked = {"seeds": [0, 1], "class_labels": 1, "conditions": conditions, "guidance_scale": scale}
            images = pipe(**asked, num_inference_steps=2, output_type="pixels").images
            assert (images.int() - expected.int()).abs().max() <= 1
    with pytest.raises(ValueError, match="no condition 'agge'; did you mean 'age'"):
        pipe(seeds=[0], conditions={"agge": 3})
    card = (tmp_path / "model" / "README.md").read_text()
    assert "conditions={'age': 2.95, 'colour': 'blue'}" in card
    assert "| colour | 3 categories: blue, green, red |" in card


@pytest.mark.scheduled
def test_exported_graphs_take_their_vectors(exported, tmp_path):
    pd.export_model(exported, tmp_path / "model", to="torch")
    facts = json.loads((tmp_path / "model" / "config.json").read_text())
    assert facts["inputs"] == ["noisy", "sigma", "coords", "labels", "attributes"]
    assert [each["name"] for each in facts["attributes"]] == ["age", "colour"]
    program = torch.export.load(tmp_path / "model" / "model.pt2").module()
    model, noisy, coords = pd.load(exported, device="cpu"), torch.randn(3, 1, 8, 8), pd.coordinate_grid(8, 8)
    labels, told = torch.tensor([0, 1, -1]), torch.randn(3, 6)
    with torch.no_grad():
        expected = model(noisy, 1.0, Conditions(coords, labels, attributes=told))
    assert torch.allclose(program(noisy, torch.ones(3), coords, labels, told), expected, atol=1e-5)
