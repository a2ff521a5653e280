"""DINOv2 (Oquab et al., arXiv 2304.07193), as Stein et al. (arXiv 2306.04675) recommend it for comparing images."""

from __future__ import annotations

import hashlib
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.extractors.extractor import Extractor
from patch_diffusion.evaluation.extractors.weights import digest_of
from patch_diffusion.files import read_json

SIDE = 224

# Of ImageNet's red, green and blue in [0, 1], which the network was trained with.
_MEANS, _DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def is_dinov2(folder: Path) -> bool:
    """Whether a folder holds such a model of transformers."""
    config = folder / "config.json"
    return config.exists() and str(read_json(config).get("model_type", "")).startswith("dinov2")


def dinov2(folder: Path, device: torch.device | str = "cpu") -> Extractor:
    """The class token behind the last norm.

    Args:
        folder: as ``save_pretrained`` of transformers writes it, with weights in safetensors.
        device: where it is computed.

    Raises:
        InputError: no such model there, or transformers is not installed.
    """
    if not is_dinov2(folder):
        raise InputError(f"{folder} holds no DINOv2: give a folder that transformers saved, with config.json")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder} has no weights in safetensors: save them by save_pretrained")
    try:
        transformers: Any = import_module("transformers")
    except ImportError:
        raise InputError("DINOv2 needs transformers: pip install 'patch_diffusion[evaluation]'") from None
    transformers.utils.logging.disable_progress_bar()
    try:
        network = transformers.AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    # What is wrong with a folder transformers tells in many ways.
    except Exception as error:
        raise InputError(f"{folder} cannot be read as a DINOv2: {' '.join(str(error).split())[:200]}") from None
    network = network.to(device).eval()
    means, deviations = (torch.tensor(each, device=device)[:, None, None] for each in (_MEANS, _DEVIATIONS))

    def features(images: torch.Tensor) -> torch.Tensor:
        values = images.to(device).float()
        values = F.interpolate(values, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 255) / 255
        return network(pixel_values=(values - means) / deviations).pooler_output

    config = hashlib.blake2b(json.dumps(read_json(folder / "config.json"), sort_keys=True).encode(), digest_size=16)
    weights = [digest_of(path) for path in files]
    settings = {"kind": "DINOv2", "weights": weights, "config": config.hexdigest(), "side": SIDE}
    return Extractor("dinov2", features, settings)
