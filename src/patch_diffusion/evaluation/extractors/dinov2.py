"""DINOv2 features (Oquab et al., arXiv 2304.07193), recommended to compare images by Stein et al., arXiv 2306.04675."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
import torch.nn.functional as F

from patch_diffusion.errors import InputError, need
from patch_diffusion.evaluation.extractors.extractor import Extractor
from patch_diffusion.evaluation.extractors.weights import digest_of
from patch_diffusion.files import read_json

SIDE = 224

# ImageNet's means and deviations of red, green and blue in [0, 1], with which the network was trained.
_MEANS, _DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def is_dinov2(folder: Path) -> bool:
    """True if a folder holds a DINOv2 model that transformers saved."""
    config = folder / "config.json"
    return config.exists() and str(read_json(config).get("model_type", "")).startswith("dinov2")


def dinov2(folder: Path, device: torch.device | str = "cpu") -> Extractor:
    """Open a DINOv2 extractor, whose features are the class token after the last norm.

    Args:
        folder: a folder that ``save_pretrained`` of transformers wrote, with weights in safetensors.
        device: the device of the network.

    Raises:
        InputError: the folder does not hold a DINOv2 model, or transformers is not installed.
    """
    if not is_dinov2(folder):
        raise InputError(f"{folder} holds no DINOv2: give a folder that transformers saved, with config.json")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder} has no weights in safetensors: save them by save_pretrained")
    transformers = need("transformers", "evaluation", "DINOv2")
    transformers.utils.logging.disable_progress_bar()
    try:
        network = transformers.AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    # transformers reports a broken folder by exceptions of many types.
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
