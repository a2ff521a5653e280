"""Reference numbers of the published implementation, where the checkout has them beside it."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

FOLDER = Path(__file__).parents[2] / "shared" / "parity"


def read(name):
    """Tensors and metadata of one file, or skip."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"the reference numbers {name} are not beside this checkout")
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def unet_weights(tensors, metadata):
    """The published weights under the names of our U-Net."""
    architecture = json.loads(metadata["architecture"])
    blocks, levels = architecture["num_blocks"], len(architecture["channel_mult"])
    sides = [int(metadata["resolution"]) >> level for level in range(levels)]
    top = sides[0]
    names = {
        f"enc.{top}x{top}_conv": "first",
        f"dec.{top}x{top}_aux_norm": "last_norm",
        f"dec.{top}x{top}_aux_conv": "last",
        "map_layer0": "embed.0",
        "map_layer1": "embed.2",
        "map_label": "embed_label",
    }
    encoder = []
    for level, side in enumerate(sides):
        encoder += [f"{side}x{side}_down"] if level else []
        encoder += [f"{side}x{side}_block{index}" for index in range(blocks)]
    names |= {f"enc.{name}": f"encoder.{index}" for index, name in enumerate(encoder)}
    low = sides[-1]
    names |= {f"dec.{low}x{low}_in0": "middle.0", f"dec.{low}x{low}_in1": "middle.1"}
    decoder = []
    for depth, side in enumerate(reversed(sides)):
        decoder += [f"{side}x{side}_up"] if depth else []
        decoder += [f"{side}x{side}_block{index}" for index in range(blocks + 1)]
    names |= {f"dec.{name}": f"decoder.{index}" for index, name in enumerate(decoder)}
    parts = {"norm2": "attention.norm", "qkv": "attention.qkv", "proj": "attention.proj"}
    weights = {}
    for key, tensor in tensors.items():
        if key.startswith("weights.model.") and not key.endswith("resample_filter"):
            module, name = key.removeprefix("weights.model.").rsplit(".", 1)
            outer, _, part = module.rpartition(".")
            if module in names:
                weights[f"{names[module]}.{name}"] = tensor
            else:
                weights[f"{names[outer]}.{parts.get(part, part)}.{name}"] = tensor
    return weights
