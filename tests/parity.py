"""Reference numbers of the published implementation, where the checkout has them beside it."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

import patch_diffusion as pd
from patch_diffusion.interop.edm_file import Published
from patch_diffusion.interop.edm_import import import_model, recognise

FOLDER = Path(__file__).parents[2] / "shared" / "parity"
NAMES = ("ddpmpp.safetensors", "ddpmpp-class-augment.safetensors", "ncsnpp.safetensors", "adm-class.safetensors")


def read(name):
    """Tensors and metadata of one file, or skip."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"the reference numbers {name} are not beside this checkout")
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def imported(name, tmp_path):
    """The model of one file, by way of an imported run; or skip."""
    read(name)
    run = tmp_path / Path(name).stem
    import_model(FOLDER / name, run)
    return pd.load(run, device="cpu")


def published_weights(tensors):
    """The published weights by their own names, without what stands before all of them."""
    place = "weights.model."
    return {name.removeprefix(place): tensor for name, tensor in tensors.items() if name.startswith(place)}


def unet_weights(tensors, metadata):
    """The published weights under the names of our U-Net."""
    published = Published(published_weights(tensors), json.loads(metadata["architecture"]))
    return recognise(published)[2]
