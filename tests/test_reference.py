import contextlib
import copyreg
import json
import os
import pickle
import shutil
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import save_file

import parity
import patch_diffusion as pd
from patch_diffusion.cli import main
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import place
from patch_diffusion.denoise.process import PROCESSES
from patch_diffusion.interop.edm_file import read_published
from patch_diffusion.interop.edm_import import import_model
from reference_files import (
    Persistent,
    Reduced,
    published_modules,
    published_network,
    published_weights,
    stored_tensor,
    text,
    torch_file,
    write_published,
)

KINDS = ("ddpmpp", "ncsnpp", "adm")
CLASSES = {"edm": "EDMPrecond", "ve": "VEPrecond", "vp": "VPPrecond"}


def make_unet(kind="ddpmpp", channels=3, width=16, **options):
    """One of our U-Nets, in which everything matters."""
    torch.manual_seed(0)
    options = {
        "multipliers": (1, 2),
        "blocks": 2,
        "attention": (1,),
        "num_classes": 4,
        "augment_channels": 3,
        **options,
    }
    network = pd.UNet(channels, width, kind=kind, dropout=0.2, label_dropout=0.1, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def inner_class(network):
    return "DhariwalUNet" if network.settings["kind"] == "adm" else "SongUNet"


def write(path, network, outer_class="Patch_EDMPrecond", resolution=16, protocol=4, outer=(), inner=(), weights=()):
    """One of our U-Nets, as a file of the published layout; a tensor given as None is left out."""
    changed = {**published_weights(network, resolution), **dict(weights)}
    changed = {name: tensor for name, tensor in changed.items() if tensor is not None}
    outer = {"sigma_data": 0.5, "img_resolution": resolution, **dict(outer)}
    inner = {"dropout": 0.2, "label_dropout": 0.1, **dict(inner)}
    modules = published_network(changed, outer_class, inner_class(network), outer, inner)
    return write_published(path, modules, protocol)


def denoised(model, height=16, width=16):
    generator = torch.Generator().manual_seed(0)
    sigma = torch.tensor([0.05, 0.5, 5.0, 50.0])
    noisy = torch.randn(4, model.image_channels, height, width, generator=generator) * (1 + sigma[:, None, None, None])
    augment = torch.randn(4, 3, generator=generator) if model.augment_channels else None
    labels = torch.tensor([0, 3, -1, 2]) if model.num_classes else None
    with torch.no_grad():
        return model(noisy, sigma, Conditions(pd.coordinate_grid(height, width), labels, augment))


@pytest.mark.slow
@pytest.mark.parametrize("process", CLASSES)
@pytest.mark.parametrize("coords", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_published_file_becomes_a_run(tmp_path, kind, coords, process):
    network = make_unet(kind, coords=coords)
    file = write(tmp_path / "network.pkl", network, CLASSES[process], outer={"sigma_data": 0.7})
    found = import_model(file, tmp_path / "run")
    model = pd.load(tmp_path / "run", device="cpu")
    expected = pd.Denoiser(network, 0.7, process=PROCESSES[process], coords=coords)
    assert torch.equal(denoised(model), denoised(place(expected, torch.device("cpu"))))
    assert model.network.settings == network.settings
    assert (model.coords, model.resolution, model.label_dropout) == (coords, (16, 16), 0.1)
    assert found["preconditioning"] == CLASSES[process] and found["network"] == inner_class(network)
    assert found["model"]["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    described = pd.describe(tmp_path / "run")
    assert described["options"]["network"] == found["options"]["network"]
    assert described["model"]["num_classes"] == 4 and not described["checkpoints"]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_other_shapes_and_protocols(tmp_path, kind, protocol):
    """Attention at other levels, three levels, a side that is no power of two, no classes, no augmentation."""
    options = {"multipliers": (1, 3, 2), "attention": (0, 2), "blocks": 1, "num_classes": 0, "augment_channels": 0}
    network = make_unet(kind, channels=1, **options)
    import_model(write(tmp_path / "network.pkl", network, resolution=28, protocol=protocol), tmp_path / "run")
    model = pd.load(tmp_path / "run", device="cpu")
    torch.testing.assert_close(denoised(model, 28, 28), denoised(pd.Denoiser(network), 28, 28), rtol=0, atol=1e-5)
    assert model.network.settings["attention"] == (0, 2)


@pytest.mark.slow
def test_whole_run(tmp_path, capsys):
    """On the command line: import, info, sample."""
    file = write(tmp_path / "network.pkl", make_unet())
    run, pictures = tmp_path / "run", tmp_path / "pictures"
    assert main(["import", str(file), "--out", str(run)]) == 0
    out, err = capsys.readouterr()
    assert not out and "ddpmpp" in err and "16x16x3, 4 classes" in err and f"patch-diffusion sample {run}" in err
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "model.safetensors"]
    assert main(["info", str(run)]) == 0
    assert "16x16x3, 4 classes" in capsys.readouterr().out
    options = ["--seeds", "0-1", "--steps", "2", "--guidance", "2"]
    assert main(["sample", str(run), "--out", str(pictures), *options]) == 0
    assert sorted(path.name for path in pictures.glob("[!.]*")) == ["000000.png", "000001.png", "samples.json"]
    capsys.readouterr()
    assert main(["import", str(file), "--out", str(tmp_path / "again"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["options"]["network"]["multipliers"] == [1, 2]


def test_labels_never_dropped_means_no_guidance(tmp_path):
    import_model(write(tmp_path / "network.pkl", make_unet(), inner={"label_dropout": 0}), tmp_path / "run")
    model = pd.load(tmp_path / "run", device="cpu")
    assert model.num_classes == 4 and model.label_dropout == 0
    with pytest.raises(pd.InputError, match="guidance needs"):
        pd.generate(model, [0], pd.Sampling(guidance=2))


@pytest.mark.parametrize("name", parity.NAMES)
@pytest.mark.parametrize("layout", ["tensors", "pickle"])
def test_imported_runs_equal_the_reference(tmp_path, name, layout):
    """Denoised whole images and patches, of the published implementation's own weights."""
    tensors, metadata = parity.read(name)
    if layout == "tensors":
        model = parity.imported(name, tmp_path)
    else:
        kind = json.loads(metadata["architecture"])["model_type"]
        modules = published_network(parity.published_weights(tensors), "Patch_EDMPrecond", kind)
        import_model(write_published(tmp_path / "network.pkl", modules), tmp_path / "run")
        model = pd.load(tmp_path / "run", device="cpu")
    sigma, augment = tensors["sigma"], tensors.get("augment_labels")
    labels = tensors["class_labels"].argmax(dim=1) if "class_labels" in tensors else None
    for part in ("full", "half"):
        noisy = tensors[f"{part}.clean"] + sigma[:, None, None, None] * tensors[f"{part}.noise"]
        with torch.no_grad():
            found = model(noisy, sigma, Conditions(tensors[f"{part}.coords"], labels, augment))
        torch.testing.assert_close(found, tensors[f"{part}.denoised"], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["safetensors", "pt", "old pt", "ema in a pt", "half precision"])
def test_tensors_by_their_published_names(tmp_path, layout):
    network = make_unet("ncsnpp")
    weights = {f"model.{name}": tensor for name, tensor in published_weights(network, 16).items()}
    weights["model.enc.8x8_down.conv0.resample_filter"] = torch.tensor([1.0, 3, 3, 1]).outer(
        torch.tensor([1.0, 3, 3, 1]) / 64
    )[None, None]
    file = tmp_path / "weights.bin"
    if layout == "safetensors":
        save_file(weights, file, {"architecture": json.dumps({"dropout": 0.3}), "label_dropout": "0.25"})
    elif layout == "half precision":
        torch.save({name: tensor.half() for name, tensor in weights.items()}, file)
    else:
        content = {"ema": weights, "step": 3} if layout == "ema in a pt" else weights
        torch.save(content, file, _use_new_zipfile_serialization=layout != "old pt")
    found = import_model(file, tmp_path / "run")
    assert found["preconditioning"] is None and found["options"]["noise"]["sigma_data"] == 0.5
    settings = {"safetensors": (0.3, 0.25)}.get(layout, (0.1, 0.0))
    assert (found["options"]["network"]["dropout"], found["options"]["network"]["label_dropout"]) == settings
    model, expected = pd.load(tmp_path / "run", device="cpu"), pd.Denoiser(network)
    if layout == "half precision":
        expected.half().float()
    torch.testing.assert_close(denoised(model), denoised(expected), rtol=0, atol=1e-5)


def stored(tensor):
    """The numbers of a tensor, as the torch file that a pickle holds of them."""
    untyped = tensor.untyped_storage()
    return torch_file(torch.storage.TypedStorage(wrap_storage=untyped, dtype=tensor.dtype, _internal=True))


@pytest.mark.slow
def test_tensors_are_taken_as_they_lie(tmp_path):
    """Channels last, as views of one storage, and as the same tensor twice."""
    network = make_unet()
    first, bias = network.first.weight.detach(), torch.randn(16)
    row = torch.cat([torch.zeros(7), first.flatten()])
    twice = stored_tensor(stored(bias), (16,), (1,))
    changes = {
        "enc.16x16_conv.weight": row[7:].view_as(first),
        "enc.16x16_block0.conv1.weight": network.encoder[0].conv1.weight.detach().to(memory_format=torch.channels_last),  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        "enc.16x16_block0.conv0.bias": twice,
        "enc.16x16_block1.conv0.bias": twice,
    }
    import_model(write(tmp_path / "network.pkl", network, weights=changes), tmp_path / "run")
    network.encoder[0].conv0.bias.data = network.encoder[1].conv0.bias.data = bias  # pyright: ignore[reportAttributeAccessIssue]
    model = pd.load(tmp_path / "run", device="cpu")
    torch.testing.assert_close(denoised(model), denoised(pd.Denoiser(network)), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_tensors_of_a_gpu(tmp_path):
    """A storage that was saved on a GPU is read without one."""
    bias = torch.randn(16)
    on_gpu = stored(bias).replace(text("cpu"), text("cuda:0"))
    assert b"cuda:0" in on_gpu
    changes = {"enc.16x16_conv.bias": stored_tensor(on_gpu, (16,), (1,))}
    import_model(write(tmp_path / "network.pkl", make_unet(), weights=changes), tmp_path / "run")
    assert torch.equal(pd.load(tmp_path / "run", device="cpu").network.first.bias, bias)


def test_what_is_not_part_of_the_state_is_left_out(tmp_path):
    network = make_unet()
    modules = published_network(published_weights(network, 16), "EDMPrecond", "SongUNet")
    modules.model.register_buffer("scratch", torch.ones(3), persistent=False)  # pyright: ignore[reportAttributeAccessIssue]
    modules.model.register_parameter("unused", None)  # pyright: ignore[reportAttributeAccessIssue]
    assert import_model(write_published(tmp_path / "network.pkl", modules), tmp_path / "run")["network"] == "SongUNet"


# What an ordinary unpickler would run. Each makes the file ``marker``, by a shell or by eval.


def shell(marker):
    return Reduced(os.system, f"touch {marker}")


def code(marker):
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


def in_the_state(marker, place):
    """A published file with a trap among the network's values, or in the data of a tensor."""
    network, weights = make_unet(), {}
    if place in ("data", "new data"):
        trap = stored_tensor(torch_file(shell(marker), new=place == "new data"), (16,), (1,))
        weights = {"enc.16x16_conv.bias": trap}
    modules = published_network({**published_weights(network, 16), **weights}, "EDMPrecond", "SongUNet")
    if place == "values":
        modules.model.trap = shell(marker)  # pyright: ignore[reportAttributeAccessIssue]
    if place == "settings":
        modules._init_kwargs["trap"] = [{"deep": (shell(marker),)}]
    return modules


SYSTEM = f"{os.system.__module__}.system"
TRAPS = {
    "at the top": (lambda marker: pickle.dumps(shell(marker)), SYSTEM),
    "beside the network": (lambda marker: pickle.dumps({"ema": None, "loss_fn": shell(marker)}), SYSTEM),
    "in protocol 0": (lambda marker: pickle.dumps(shell(marker), 0), SYSTEM),
    "among the values": (lambda marker: in_the_state(marker, "values"), SYSTEM),
    "among the settings": (lambda marker: in_the_state(marker, "settings"), SYSTEM),
    "in the data of a tensor": (lambda marker: in_the_state(marker, "data"), SYSTEM),
    "in the data of a tensor, zipped": (lambda marker: in_the_state(marker, "new data"), SYSTEM),
    "in a torch file": (lambda marker: torch_file({"a": torch.ones(1), "b": shell(marker)}, new=True), SYSTEM),
    "in an old torch file": (lambda marker: torch_file({"a": torch.ones(1), "b": shell(marker)}), SYSTEM),
    "GLOBAL": (lambda marker: b"\x80\x02cbuiltins\neval\n" + text(code(marker)) + b"\x85R.", "builtins.eval"),
    "STACK_GLOBAL": (
        lambda marker: b"\x80\x04" + text("builtins") + text("eval") + b"\x93" + text(code(marker)) + b"\x85R.",
        "builtins.eval",
    ),
    "INST": (lambda marker: b"(" + text(code(marker)) + b"ibuiltins\neval\n.", "builtins.eval"),
    "OBJ": (lambda marker: b"(cbuiltins\neval\n" + text(code(marker)) + b"o.", "builtins.eval"),
    "EXT1": (lambda marker: b"\x80\x02\x82\xf0" + text(code(marker)) + b"\x85R.", "EXT1"),
    "EXT2": (lambda marker: b"\x80\x02\x83\xf0\x00" + text(code(marker)) + b"\x85R.", "EXT2"),
    "EXT4": (lambda marker: b"\x80\x02\x84\xf0\x00\x00\x00" + text(code(marker)) + b"\x85R.", "EXT4"),
    "a persistent id": (
        lambda marker: b"\x80\x02cbuiltins\neval\n" + text(code(marker)) + b"\x85RQ.",
        "builtins.eval",
    ),
}


@pytest.fixture
def extension():
    """A number for ``eval`` in the registry of extensions."""
    copyreg.add_extension("builtins", "eval", 240)
    yield
    copyreg.remove_extension("builtins", "eval", 240)


def write_trap(path, content):
    return write_published(path, content) if isinstance(content, Persistent) else path.write_bytes(content) and path


def refusal(file, run, capsys):
    """The one line that the command line says, having written nothing."""
    assert main(["import", str(file), "--out", str(run)]) == 1
    out, err = capsys.readouterr()
    assert not out and err.endswith("\n") and err[:-1].isprintable() and "Traceback" not in err
    assert not run.exists()
    return err


@pytest.mark.parametrize("place", TRAPS)
def test_a_hostile_file_runs_nothing(tmp_path, capsys, extension, place):
    make, named = TRAPS[place]
    marker = tmp_path / "marker"
    file = write_trap(tmp_path / "network.pkl", make(marker))
    err = refusal(file, tmp_path / "run", capsys)
    assert f"{file} is refused" in err and named in err
    assert not marker.exists()


@pytest.mark.parametrize("place", TRAPS)
def test_an_ordinary_reader_would_run_it(tmp_path, extension, place):
    """Or the test above would show nothing."""
    marker = tmp_path / "marker"
    file = write_trap(tmp_path / "network.pkl", TRAPS[place][0](marker))
    with published_modules(), contextlib.suppress(Exception):
        if "torch file" in place:
            torch.load(file, weights_only=False)
        else:
            pickle.loads(file.read_bytes())
    assert marker.exists()


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        (text("a") + b"Q", "BINPERSID"),
        (b"Panything\n", "PERSID"),
        (b"cbuiltins\neval\n)\x81", "builtins.eval"),
        (b"ccollections\nOrderedDict\n)}\x92", "NEWOBJ_EX"),
        (b"(icollections\nOrderedDict\n", "INST"),
        (b"(ccollections\nOrderedDict\no", "OBJ"),
        (text("built\nins") + text("ev\x1b[2Jal\n" + "x" * 500) + b"\x93", r"built ins.ev\x1b[2Jal xxx"),
        (text("eval") + b")R", "it calls a str"),
        (b"ccollections\nOrderedDict\n}R", "it calls"),
        (b"]}b", "Instance is expected, not list"),
        (b"ccollections\nOrderedDict\n}b", "Instance is expected, not _Global"),
        (b"})K\x01s", "a tuple is a key"),
        (b"\x8f()\x90", "a tuple is a key"),
        (b"((", "no pickle"),
        (b"t", "no pickle"),
        (b"h\x05", "no pickle"),
        (b"\xff", "no pickle"),
        (b"NN", "no pickle"),
        (b"K\x01" + text("eval") + b"\x93", "a name is no text"),
        (b"cnumpy\ndtype\n" + text("O8") + b"\x85R", "holds no network"),
    ],
)
def test_operations_that_are_refused(tmp_path, capsys, operations, message):
    file = tmp_path / "network.pkl"
    file.write_bytes(b"\x80\x04" + operations + b".")
    err = refusal(file, tmp_path / "run", capsys)
    assert message in err and len(err) < 500


# A tuple of the same tuple twice, and so on: a few bytes, and 2^60 places to look at for what takes it apart.
NESTED = b")\x94" + b"".join(b"0h" + bytes([level]) + b"h" + bytes([level]) + b"\x86\x94" for level in range(60))
PERSISTENT = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        (b"}" + NESTED + b"Ns", "a tuple is a key"),
        (b"\x8f(" + NESTED + b"\x90", "a tuple is a key"),
        (b"cbuiltins\nset\n](" + NESTED + b"e\x85R", "a tuple is a key"),
        (b"ccollections\nOrderedDict\n](" + NESTED + b"N\x86e\x85R", "a tuple is a key"),
        (NESTED + text("eval") + b"\x93", "a name is no text"),
        (PERSISTENT + b"}(" + text("class_name") + NESTED + text("state") + b"}u\x85R", "is no text"),
        (b"}" + text("ema") + NESTED + b"s", "holds no network"),
    ],
)
def test_a_file_that_would_take_for_ever(tmp_path, capsys, operations, message):
    file = tmp_path / "network.pkl"
    file.write_bytes(b"\x80\x04" + operations + b".")
    assert message in refusal(file, tmp_path / "run", capsys)


@pytest.mark.parametrize(
    "tensor", [torch.ones(1).expand(10**12), torch.ones(2, device="meta"), torch.eye(2).to_sparse()]
)
def test_a_torch_file_that_claims_more_than_it_holds(tmp_path, capsys, tensor):
    file = tmp_path / "weights.pt"
    torch.save({"enc.16x16_conv.weight": tensor}, file)
    assert "claims numbers for enc.16x16_conv.weight that are not" in refusal(file, tmp_path / "run", capsys)


@pytest.mark.parametrize("number", [np.float64(0.7), np.float32(0.75), np.int64(2)])
def test_numbers_of_numpy_are_numbers(tmp_path, number):
    file = write(tmp_path / "network.pkl", make_unet(), outer={"sigma_data": number})
    assert import_model(file, tmp_path / "run")["model"]["sigma_data"] == number


def test_other_things_of_numpy_are_refused(tmp_path, capsys):
    scalar = np.float64(1).__reduce__()[0]
    file = write(tmp_path / "a.pkl", make_unet(), outer={"sigma_data": Reduced(scalar, np.dtype("O"), b"")})
    assert "a number is of the type" in refusal(file, tmp_path / "run", capsys)
    file = write(tmp_path / "b.pkl", make_unet(), outer={"sigma_data": np.ones(2)})
    assert "multiarray._reconstruct" in refusal(file, tmp_path / "run", capsys)


@pytest.mark.parametrize(
    "operation",
    [
        b"\x8e" + struct.pack("<Q", 2**62),  # BINBYTES8
        b"\x96" + struct.pack("<Q", 2**36),  # BYTEARRAY8
        b"\x8d" + struct.pack("<Q", 2**63 + 1),  # BINUNICODE8
        b"B" + struct.pack("<I", 2**32 - 1),  # BINBYTES
        b"\x8b" + struct.pack("<i", 2**31 - 1),  # LONG4
        b"\x8b" + struct.pack("<i", -1),
        b"\x95" + struct.pack("<Q", 2**62) + b"N.",  # FRAME
        b"Nr" + struct.pack("<I", 2**32 - 1) + b".",  # LONG_BINPUT, which ordinary readers make a table for
    ],
)
def test_a_length_that_is_a_lie_reserves_no_memory(tmp_path, capsys, operation):
    file = tmp_path / "network.pkl"
    file.write_bytes(b"\x80\x04" + operation)
    tracemalloc.start()
    try:
        with pytest.raises(pd.InputError, match="damaged, or no pickle|holds no network"):
            read_published(file)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_a_tensor_that_is_larger_than_its_data(tmp_path, capsys):
    for shape, strides, offset in (((10**12, 1), (0, 0), 0), ((16,), (1,), 8), ((16,), (1,), -1), ((4,), (16,), 0)):
        tensor = stored_tensor(stored(torch.zeros(16)), shape, strides, offset)
        file = write(tmp_path / "network.pkl", make_unet(), weights={"enc.16x16_conv.bias": tensor})
        assert "is damaged" in refusal(file, tmp_path / "run", capsys)
    tensor = stored_tensor(torch_file([1, 2]), (2,), (1,))
    file = write(tmp_path / "network.pkl", make_unet(), weights={"enc.16x16_conv.bias": tensor})
    assert "the data of a tensor is a list" in refusal(file, tmp_path / "run", capsys)


@pytest.mark.slow
def test_truncated_files(tmp_path, capsys):
    whole = write(tmp_path / "whole.pkl", make_unet(blocks=1)).read_bytes()
    for part in [*np.linspace(0, 1, 24, endpoint=False), 1 - 1 / len(whole)]:
        file = tmp_path / "network.pkl"
        file.write_bytes(whole[: round(part * len(whole))])
        err = refusal(file, tmp_path / "run", capsys)
        assert "is damaged" in err or "is empty" in err


@pytest.mark.parametrize("layout", ["safetensors", "pt", "old pt"])
def test_truncated_tensors(tmp_path, capsys, layout):
    weights = published_weights(make_unet(), 16)
    file = tmp_path / "weights"
    if layout == "safetensors":
        save_file(weights, file)
    else:
        torch.save(weights, file, _use_new_zipfile_serialization=layout == "pt")
    file.write_bytes(file.read_bytes()[:-1000])
    assert "is damaged" in refusal(file, tmp_path / "run", capsys)


@pytest.mark.slow
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_anywhere_is_an_error_of_one_line_or_harmless(tmp_path, data):
    whole = tmp_path / "whole.pkl"
    if not whole.exists():
        network = make_unet(width=4, multipliers=(1,), blocks=1, attention=(), num_classes=0, augment_channels=0)
        write(whole, network)
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path / "network.pkl"
    file.write_bytes(content)
    try:
        import_model(file, tmp_path / "run")
    except pd.InputError as error:
        assert str(error).isprintable()
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([1, 2]), "holds no network"),
        (pickle.dumps({"ema": 5}), "holds no network"),
        (pickle.dumps({"net": None}), "holds no network"),
        (torch_file({"step": 3}, new=True), "no networks of the kinds supported"),
        (torch_file([1], new=True), "holds a list and no tensors"),
        (torch_file({"weight": torch.ones(2)}), "no networks of the kinds supported"),
        (b"hello, world, this is a text", "is damaged, or no pickle"),
        (b"\0" * 8 + b"{}", "is damaged"),
        (b"", "is empty"),
    ],
)
def test_other_files(tmp_path, capsys, content, message):
    file = tmp_path / "network.pkl"
    file.write_bytes(content)
    assert message in refusal(file, tmp_path / "run", capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outer_class": "iDDPMPrecond"}, "class iDDPMPrecond is not supported, only of EDMPrecond"),
        ({"inner": {"decoder_type": "skip"}}, "decoder_type 'skip' is not supported"),
        ({"inner": {"encoder_type": "skip"}}, "encoder_type 'skip' is not supported"),
        ({"outer_class": "VPPrecond", "outer": {"beta_d": 10}}, "beta_d of the VP process is 10"),
        ({"outer": {"sigma_data": "half"}}, "sigma_data is a finite number, not half"),
        ({"outer": {"sigma_data": float("inf")}}, "sigma_data is a finite number, not inf"),
        ({"outer": {"sigma_data": -1}}, "above 0, not -1"),
        ({"inner": {"dropout": 1}}, "dropout is a probability"),
        ({"weights": {"map_noise.freqs": torch.ones(16)}}, "'fourier' together with encoder_type 'standard'"),
        ({"weights": {"dec.16x16_up.skip.resample_filter": torch.ones(1, 1, 4, 4) / 16}}, "resample_filter"),
        ({"weights": {"dec.16x16_up.skip.resample_filter": torch.ones(1, 1, 2, 2)}}, "is not [1, 1]"),
        ({"weights": {"enc.16x16_aux_skip.weight": torch.ones(3)}}, "enc.16x16_aux_skip.weight that a network"),
        ({"weights": {"dec.8x8_in0.qkv.weight": None}}, "1 tensors are missing"),
        ({"weights": {"dec.8x8_in0.norm0.bias": torch.ones(3)}}, "has the shape (3,), where"),
        # As a network it would take 700 GB.
        ({"weights": {"enc.8x8_block0.conv0.weight": torch.ones(2**16, 1, 1, 1)}}, "has the shape"),
        ({"weights": {"dec.8x8_in0.norm0.bias": torch.ones(32).int()}}, "holds int32, not floats"),
        ({"weights": {"enc.16x16_conv.weight": torch.ones(16, 4, 3, 3)}}, "takes 4 channels and gives 3"),
        ({"weights": {"enc.16x16_conv.weight": torch.ones(24, 5, 3, 3)}}, "widths of the levels, 16, 32"),
        ({"weights": {"enc.16x16_conv.weight": torch.ones(2, 5, 3, 3)}}, "network.width is a multiple of 4"),
        ({"weights": {"enc.16x16_conv.weight": torch.ones(16)}}, "no convolution enc.16x16_conv.weight"),
        ({"weights": {"enc.16x16_conv.weight": None}}, "no networks of the kinds supported"),
        ({"weights": {"enc.16x16_block0.conv0.weight": None}}, "no tensor enc.16x16_block0.conv0.weight"),
        ({"weights": {"dec.16x16_aux_conv.weight": None}}, "no convolution dec.16x16_aux_conv.weight"),
    ],
)
def test_what_is_not_supported_is_said(tmp_path, capsys, change, message):
    file = write(tmp_path / "network.pkl", make_unet(), **change)
    assert message in refusal(file, tmp_path / "run", capsys)


@pytest.mark.slow
def test_modules_that_are_not_as_published(tmp_path, capsys):
    def modules():
        return published_network(published_weights(make_unet(), 16), "EDMPrecond", "SongUNet")

    twice, itself, unknown, without = modules(), modules(), modules(), modules()
    twice.other = twice.model
    itself.model.add_module("again", itself)  # pyright: ignore[reportAttributeAccessIssue]
    unknown.model.class_name = "HugeUNet"  # pyright: ignore[reportAttributeAccessIssue]
    without._modules = 5  # pyright: ignore[reportAttributeAccessIssue]
    plain = modules()
    plain.model.add_module("drop", torch.nn.Dropout())  # pyright: ignore[reportAttributeAccessIssue]
    for network, message in (
        (twice, "a module has two places"),
        (itself, "a module has two places"),
        (unknown, "the network is a HugeUNet"),
        (without, "as published files do"),
        (plain, "it names torch.nn.modules.dropout.Dropout"),
    ):
        file = write_published(tmp_path / "network.pkl", network)
        assert message in refusal(file, tmp_path / "run", capsys)


@pytest.mark.parametrize(
    ("out", "message"),
    [("run", "holds a run already"), ("other", "holds other files (thesis.tex)"), ("file", "is a file")],
)
def test_an_occupied_place_is_refused_and_left_alone(tmp_path, capsys, out, message):
    network = write(tmp_path / "network.pkl", make_unet())
    import_model(network, tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    (tmp_path / "file").write_text("")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(["import", str(network), "--out", str(tmp_path / out)]) == 1
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_no_file_and_no_out(tmp_path, capsys):
    assert "there is no file at" in refusal(tmp_path / "nowhere.pkl", tmp_path / "run", capsys)
    assert main(["import", str(tmp_path / "nowhere.pkl")]) == 2
    assert "--out" in capsys.readouterr().err
