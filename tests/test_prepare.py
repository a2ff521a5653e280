import errno
import json
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import patch_diffusion as pd
import patch_diffusion.data
from needs import need
from patch_diffusion.cli import main
from patch_diffusion.config import Data
from patch_diffusion.data.preparation import partial, prepare
from patch_diffusion.data.preparation.prepare import prepare_images
from patch_diffusion.data.reading.labels import could_be_classes
from patch_diffusion.data.reading.parallel import in_order


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.zip"


def names_in(out):
    with zipfile.ZipFile(out) as archive:
        return archive.namelist()


def leftovers(out):
    """What is beside the zip and its report."""
    return sorted(path.name for path in out.parent.glob(out.name + ".*"))


def test_the_layout_of_stylegan_and_edm(make_folder, out):
    make_folder(2, subfolder="dog")
    folder = make_folder(3, (12, 8), subfolder="cat")
    report = prepare_images(Data(str(folder), 8, classes=True, fit="stretch"), out)
    assert names_in(out) == [f"00000/img{index:08d}.png" for index in range(5)] + ["dataset.json"]
    with zipfile.ZipFile(out) as archive:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        labels = json.loads(archive.read("dataset.json"))["labels"]
    assert labels == [[f"00000/img{index:08d}.png", label] for index, label in enumerate([0, 0, 0, 1, 1])]
    assert report["images"] == 5 and report["class_names"] == ["cat", "dog"] and report["num_classes"] == 2
    assert json.loads(out.with_name("out.report.json").read_text()) == report and not leftovers(out)
    opened = pd.open_images(out)
    assert opened.pixels.shape == (5, 3, 8, 8) and opened.labels.tolist() == [0, 0, 0, 1, 1]


def test_without_classes_labels_are_null_and_a_folder_has_a_thousand(make_folder, out, monkeypatch):
    monkeypatch.setattr(prepare, "IMAGES_PER_FOLDER", 2)
    prepare_images(Data(str(make_folder(5))), out)
    assert names_in(out)[1:4] == ["00000/img00000001.png", "00001/img00000002.png", "00001/img00000003.png"]
    with zipfile.ZipFile(out) as archive:
        assert json.loads(archive.read("dataset.json")) == {"labels": None}
    assert pd.open_images(out).labels is None


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("mode", ["auto", "L", "RGBA"])
def test_pixels_are_those_that_training_would_have_made(make_folder, out, fit, mode):
    folder = make_folder(4, (24, 40))
    options = Data(str(folder), (8, 12), mode=mode, fit=fit)
    prepare_images(options, out)
    expected = pd.open_images(folder, resolution=(8, 12), mode=mode, fit=fit).pixels  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(pd.open_images(out, mode=mode).pixels, expected)


def test_sixteen_bits_stay(tmp_path, out):
    deep = np.random.default_rng(0).integers(0, 65536, (4, 8, 8)).astype(np.uint16)
    np.save(tmp_path / "deep.npy", deep)
    assert prepare_images(Data(str(tmp_path / "deep.npy")), out)["mode"] == "I;16"
    opened = pd.open_images(out)
    assert opened.codec.dtype == "uint16" and np.array_equal(opened.pixels[:, 0].numpy(), deep)


@pytest.mark.slow
def test_the_digits_and_their_classes(out):
    report = prepare_images(Data("digits"), out)
    assert report["images"] + len(report["dropped"]) == 1797
    assert pd.open_images(out).labels.bincount().min() > 150


@pytest.fixture
def mixed(make_folder):
    """Ten pictures: 003 is there again, also smaller by resizing it, one broken, one tiny, one transparent."""
    folder = make_folder(5, (16, 16))
    with Image.open(folder / "003.png") as picture:
        picture.save(folder / "copy-of-003.webp", lossless=True)
    (folder / "broken.png").write_bytes((folder / "000.png").read_bytes()[:100])
    Image.new("RGB", (1, 1)).save(folder / "tiny.png")
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(folder / "clear.png")
    Image.new("RGB", (16, 16), "white").save(folder / "white.png")
    return folder


def test_what_is_left_out_is_told(mixed, out):
    report = prepare_images(Data(str(mixed), 8), out)
    assert report["files"] == 10 and report["images"] == 6 == len(names_in(out)) - 1
    dropped = {line["file"]: line["dropped"] for line in report["dropped"]}
    assert dropped.keys() == {"copy-of-003.webp", "broken.png", "tiny.png", "white.png"}
    assert dropped["copy-of-003.webp"] == "the same pixels as 003.png"
    assert dropped["white.png"] == "the same pixels as clear.png"  # which is laid over white
    assert dropped["tiny.png"] == "1x1 is too small to enlarge to 8x8"
    assert any("transparent" in note for note in report["notes"])


def test_copies_are_kept_if_asked_for(mixed, out):
    report = prepare_images(Data(str(mixed), 8), out, keep_duplicates=True)
    assert report["images"] == 8


def test_a_copy_of_another_class_is_told(make_folder, out):
    make_folder(2, subfolder="cat")
    folder = make_folder(1, subfolder="dog")
    report = prepare_images(Data(str(folder), classes=True), out)
    assert report["dropped"] == [
        {"file": "dog/000.png", "dropped": "the same pixels as cat/000.png, though of another class"}
    ]


def test_the_same_call_does_nothing_and_another_is_refused(mixed, out):
    report = prepare_images(Data(str(mixed), 8), out)
    before = out.stat().st_mtime_ns
    assert prepare_images(Data(str(mixed), 8), out) == report and out.stat().st_mtime_ns == before
    for options, keep in ((Data(str(mixed), 4), False), (Data(str(mixed), 8), True)):
        with pytest.raises(pd.InputError, match="is there already, of other data or options"):
            prepare_images(options, out, keep_duplicates=keep)
    (mixed / "new.png").write_bytes((mixed / "000.png").read_bytes())
    with pytest.raises(pd.InputError, match="is there already"):
        prepare_images(Data(str(mixed), 8), out)
    assert not leftovers(out)


@pytest.fixture
def stopped(monkeypatch):
    """``stopped(num, call)``: the call, with Ctrl-C when ``num`` files have been read."""

    def run(num, call):
        def interrupted(*arguments, **options):
            for count, result in enumerate(in_order(*arguments, **options)):
                if count == num:
                    raise KeyboardInterrupt
                yield result

        with monkeypatch.context() as patch:
            patch.setattr(prepare, "in_order", interrupted)
            return call()

    return run


def stop(stopped, num, options, out):
    with pytest.raises(KeyboardInterrupt):
        stopped(num, lambda: prepare_images(options, out))


@pytest.mark.parametrize("num", [0, 1, 5, 9])
def test_a_stopped_one_goes_on_and_ends_in_the_same_bytes(mixed, out, tmp_path, stopped, monkeypatch, num):
    other = tmp_path / "whole.zip"
    report = prepare_images(Data(str(mixed), 8), other)
    stop(stopped, num, Data(str(mixed), 8), out)
    assert not out.exists() and leftovers(out) == ["out.zip.partial"]
    decoded = []
    decode = prepare.decode_file
    monkeypatch.setattr(prepare, "decode_file", lambda file, *rest: decoded.append(file.name) or decode(file, *rest))
    assert prepare_images(Data(str(mixed), 8), out) == report
    assert out.read_bytes() == other.read_bytes() and len(decoded) <= 10 - num and not leftovers(out)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "pictures").write_bytes((folder / "pictures").read_bytes()[:-50]),
        lambda folder: (folder / "pictures").write_bytes((folder / "pictures").read_bytes() + b"half a picture"),
        lambda folder: (folder / "files.jsonl").write_bytes((folder / "files.jsonl").read_bytes()[:-20]),
        lambda folder: (folder / "files.jsonl").write_bytes((folder / "files.jsonl").read_bytes() + b'{"file": "'),
        lambda folder: (folder / "files.jsonl").unlink(),
        lambda folder: (folder / "pictures").unlink(),
        lambda folder: (folder / "files.jsonl").write_bytes(b""),
    ],
    ids=["picture cut", "picture more", "line cut", "line more", "no lines", "no pictures", "nothing written"],
)
def test_a_killed_one_goes_on_from_what_is_whole(mixed, out, tmp_path, stopped, damage):
    other = tmp_path / "whole.zip"
    report = prepare_images(Data(str(mixed), 8), other)
    stop(stopped, 6, Data(str(mixed), 8), out)
    damage(tmp_path / "out.zip.partial")
    assert prepare_images(Data(str(mixed), 8), out) == report and out.read_bytes() == other.read_bytes()


def test_pictures_of_other_options_are_not_gone_on_from(mixed, out, tmp_path, stopped):
    stop(stopped, 6, Data(str(mixed), 8), out)
    prepare_images(Data(str(mixed), 4), out)
    prepare_images(Data(str(mixed), 4), tmp_path / "whole.zip")
    assert out.read_bytes() == (tmp_path / "whole.zip").read_bytes() and pd.open_images(out).resolution == (4, 4)


def test_a_damaged_picture_of_a_stopped_one_is_noticed(mixed, out, tmp_path, stopped):
    stop(stopped, 6, Data(str(mixed), 8), out)
    pictures = tmp_path / "out.zip.partial" / "pictures"
    content = bytearray(pictures.read_bytes())
    content[60] ^= 1
    pictures.write_bytes(content)
    with pytest.raises(pd.InputError, match="is damaged: remove it"):
        prepare_images(Data(str(mixed), 8), out)
    assert not out.exists()


@pytest.mark.slow
def test_a_killed_process_leaves_what_the_next_goes_on_from(make_folder, out, tmp_path):
    folder = make_folder(300, (16, 16))
    slow = (
        "import sys, time; from patch_diffusion.config import Data\n"
        "from patch_diffusion.data.preparation import prepare\n"
        "to_png = prepare._to_png\n"
        "prepare._to_png = lambda pixels: time.sleep(0.05) or to_png(pixels)\n"
        "prepare.prepare_images(Data(sys.argv[1], 8), sys.argv[2])"
    )
    process = subprocess.Popen([sys.executable, "-c", slow, str(folder), str(out)])
    pictures = tmp_path / "out.zip.partial" / "pictures"
    while process.poll() is None and not (pictures.exists() and pictures.stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not out.exists()
    prepare_images(Data(str(folder), 8), out)
    prepare_images(Data(str(folder), 8), tmp_path / "whole.zip")
    assert out.read_bytes() == (tmp_path / "whole.zip").read_bytes() and not leftovers(out)


def test_a_full_disk_is_said_and_can_be_gone_on_from(make_folder, out, tmp_path, monkeypatch):
    folder = make_folder(9)

    def full(self, name, picture, content):
        if len(self.lines) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, name, picture, content)

    add = partial.PartialZip.add
    with monkeypatch.context() as patch:
        patch.setattr(partial.PartialZip, "add", full)
        with pytest.raises(pd.InputError, match="is full: make room and call prepare again"):
            prepare_images(Data(str(folder), 4), out)
    prepare_images(Data(str(folder), 4), out)
    prepare_images(Data(str(folder), 4), tmp_path / "whole.zip")
    assert out.read_bytes() == (tmp_path / "whole.zip").read_bytes()


def test_what_cannot_be_prepared(make_folder, tmp_path, out):
    folder = make_folder(2, (8, 8))
    cases = [
        (Data(str(tmp_path / "nowhere")), out, "there is no data at"),
        (Data(str(folder)), tmp_path / "out.tar", r"into a \.zip, not 'out\.tar'"),
        (Data(str(folder), 8, fit="bucket"), out, "crop or stretch"),
        (Data(str(folder), 64), out, r"none of the 2 images can be used \(first: 000\.png, 8x8 is too small"),
        (Data(str(folder), 8, labels="no.csv"), out, "there is no file of labels"),
    ]
    Image.new("RGB", (8, 12)).save(make_folder(1, name="sizes") / "odd.png")
    cases.append((Data(str(tmp_path / "sizes")), out, r"2 sizes \(8x8, 12x8\): give --resolution"))
    np.save(tmp_path / "floats.npy", np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32))
    cases.append((Data(str(tmp_path / "floats.npy")), out, "these images have 1 of float32"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    cases.append((Data(str(tmp_path / "broken")), out, r"none of the 1 images can be read \(first: a\.png"))
    for options, path, message in cases:
        with pytest.raises(pd.InputError, match=message):
            prepare_images(options, path)
        assert not path.exists() and not leftovers(path), message
    prepare_images(Data(str(folder)), out)
    with pytest.raises(pd.InputError, match="over itself"):
        prepare_images(Data(str(out)), out)


def test_the_command(mixed, out, capsys):
    assert main(["prepare", str(mixed), str(out), "--resolution", "8"]) == 0
    said = capsys.readouterr().err
    assert f"6 images of 8x8 are in {out}" in said and "4 of 10 files left out (first: broken.png: " in said
    assert main(["prepare", str(mixed), str(out), "--resolution", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 6
    assert main(["prepare", str(mixed), str(out), "--resolution", "4"]) == 1
    assert main(["prepare", str(mixed)]) == 2
    assert main(["prepare", str(mixed), str(out.with_name("b.zip")), "--fit", "bucket"]) == 2
    capsys.readouterr()


def test_the_command_after_ctrl_c(mixed, out, stopped, capsys):
    assert stopped(3, lambda: main(["prepare", str(mixed), str(out), "--resolution", "8"])) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


@pytest.mark.slow
def test_an_array_in_many_files_that_has_changed(tmp_path, out):
    zarr = need("zarr", "data")
    path = tmp_path / "a.zarr"
    stored = zarr.open_array(str(path), mode="w", shape=(6, 8, 8, 3), chunks=(2, 8, 8, 3), dtype="uint8")
    stored[:] = 7
    prepare_images(Data(str(path)), out)
    assert prepare_images(Data(str(path)), out)
    stored[:] = 8
    with pytest.raises(pd.InputError, match="of other data or options"):
        prepare_images(Data(str(path)), out)


def test_sub_folders_are_kept_as_classes_by_name(make_folder, out, tmp_path, capsys):
    make_folder(3, subfolder="photos/cat")
    folder = make_folder(2, subfolder="photos/dog")
    assert main(["prepare", str(folder), str(out), "--keep-duplicates"]) == 0
    assert "5 images of 8x8, 2 classes are in" in capsys.readouterr().err
    images = pd.open_images(out)
    assert images.class_names == ("cat", "dog") and images.labels.tolist() == [0, 0, 0, 1, 1] and not images.notes
    again = tmp_path / "again.zip"
    prepare_images(Data(str(out)), again, keep_duplicates=True)
    assert pd.open_images(again).class_names == ("cat", "dog")


def test_a_zip_without_classes_has_none_of_its_thousands(make_folder, out, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "IMAGES_PER_FOLDER", 2)
    make_folder(3, subfolder="cat")
    folder = make_folder(3, (8, 9), subfolder="dog")
    assert main(["prepare", str(folder), str(out), "--resolution", "8", "--classes", "False"]) == 0
    assert "--classes is --data.classes now; the old name works for one more release" in capsys.readouterr().err
    assert pd.open_images(out).notes == ()
    with pytest.raises(pd.InputError, match="was prepared without classes, and its folders only hold a thousand"):
        pd.open_images(out, classes=True)
    again = tmp_path / "again.zip"
    assert prepare_images(Data(str(out)), again)["num_classes"] == 0


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["cat/0.png", "dog/0.png"], ("cat", "dog")),
        (["all/10/0.png", "all/9/0.png"], ("9", "10")),
        (["cat/0.png", "0.png"], ()),
        (["cat/0.png", "cat/1.png"], ()),
        (["train/0.png", "val/0.png"], ()),
        (["00000/img00000999.png", "00001/img00001000.png"], ()),
        (["00000/00999.png", "01000/01000.png"], ()),
        (["0/0.png", "1/0.png"], ("0", "1")),
        ([f"{index}/a.png" for index in range(20)], ()),
    ],
)
def test_sub_folders_that_could_be_classes(names, found):
    assert could_be_classes(names) == found


def test_ids_are_not_kept_as_classes(make_folder, out):
    folder = make_folder(24)
    entries = [[f"{index:03d}.png", 7_000_000 + index] for index in range(24)]
    (folder / "dataset.json").write_text(json.dumps({"labels": entries}))
    with pytest.raises(pd.InputError, match="24 different labels: these look like ids, not classes"):
        prepare_images(Data(str(folder)), out)


@pytest.mark.slow
def test_options_of_the_data_have_one_name_in_all_verbs(capsys):
    """What a message about data calls an option is its name in every verb that reads data."""
    names = set()
    for file in Path(patch_diffusion.data.__file__).parent.rglob("*.py"):
        names |= set(re.findall(r"--data\.[a-z-]+", file.read_text(encoding="utf-8")))
    in_training = {"--data.range", "--data.cache"}  # of what is decoded to train on
    for verb in ("train", "inspect", "race", "prepare"):
        with pytest.raises(SystemExit):
            main([verb, "--help-all"])
        told = capsys.readouterr().out
        assert all(name in told for name in names - (in_training if verb == "prepare" else set()))
        assert "--data.resolution" in told and "--resolution" in told
