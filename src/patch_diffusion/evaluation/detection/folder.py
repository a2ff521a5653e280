"""A folder of findings: a table, the settings, and a picture of each map over its image."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from patch_diffusion.data.codec import Codec
from patch_diffusion.errors import shown
from patch_diffusion.evaluation.detection.detect import Finding
from patch_diffusion.evaluation.detection.ordinary import Threshold
from patch_diffusion.files import write_json, write_text
from patch_diffusion.sampling.pictures import to_image, visible, write_picture

TABLE, SETTINGS, MAPS = "table.csv", "detect.json", "maps"
COLUMNS = ("file", "score", "threshold", "alarm", "row", "column")

# From dark violet over green to yellow, the brighter the higher: people who see few colours tell them apart, too.
_COLOURS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float64)
_OUTLINE = (255, 40, 40)
_SMALLEST, _BAR, _GAP = 256, 14, 6


def write_findings(
    findings: Iterable[Finding],
    folder: Path,
    codec: Codec,
    threshold: Threshold,
    settings: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write ``maps/NAME.png`` for each finding as it comes, then ``table.csv`` and ``detect.json``.

    Args:
        findings: from `patch_diffusion.evaluation.detection.detect.Detector.findings`.
        folder: the folder, which is created if it does not exist.
        codec: the codec of the model, which knows the range of pixels.
        threshold: the threshold of the findings.
        settings: the settings, for detect.json.
        notes: remarks for the user, for detect.json.

    Returns:
        The content of detect.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[Any, ...]] = []
    taken: set[str] = set()
    for finding in findings:
        write_picture(picture_of(finding, threshold.value, codec), folder / MAPS / _file_name(finding.name, taken))
        score, limit = f"{finding.score:.4f}", f"{threshold.value:.4f}"
        rows.append((shown(finding.name), score, limit, int(finding.alarm), *finding.place))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    write_text(folder / TABLE, stream.getvalue())
    alarms = sum(row[3] for row in rows)
    result = {"images": len(rows), "alarms": alarms, **settings, "notes": list(notes)}
    write_json(folder / SETTINGS, result)
    return result


def picture_of(finding: Finding, threshold: float, codec: Codec) -> Image.Image:
    """Return the image, and beside it its map over it, with a scale from 0 to twice the threshold.

    What is above the threshold has a red outline. Small images are enlarged by a whole number.
    """
    low, high = (float(edge) for edge in codec.decode(torch.tensor([[-1.0, 1.0]]))[0])
    image = to_image(visible(finding.pixels, low, high)).convert("RGB")
    height, width = finding.map.shape
    image = image.crop((0, 0, width, height))  # of channels that are side by side, the first
    scale = max(1, -(-_SMALLEST // max(height, width)))
    limit = max(threshold, 1e-6)
    share = np.clip(finding.map.astype(np.float64) / (2 * limit), 0, 1)
    grey = np.asarray(image.convert("L"), np.float64)[..., None]
    opacity = (0.25 + 0.55 * share)[..., None]
    over = Image.fromarray(((1 - opacity) * grey + opacity * _coloured(share)).round().astype(np.uint8))
    large = (width * scale, height * scale)
    over = np.array(over.resize(large, Image.Resampling.NEAREST))
    over[_outline(np.kron(finding.map > threshold, np.ones((scale, scale), bool)))] = _OUTLINE
    bar = (
        _coloured(np.linspace(1, 0, large[1], dtype=np.float64))[:, None].repeat(_BAR, axis=1).round().astype(np.uint8)
    )
    text = f"{2 * limit:.1f}"
    margin = int(ImageDraw.Draw(image).textlength(text)) + 2 * _GAP
    sheet = Image.new("RGB", (2 * large[0] + 2 * _GAP + _BAR + margin, large[1]), "white")
    sheet.paste(image.resize(large, Image.Resampling.NEAREST), (0, 0))
    sheet.paste(Image.fromarray(over), (large[0] + _GAP, 0))
    left = 2 * large[0] + 2 * _GAP
    sheet.paste(Image.fromarray(bar), (left, 0))
    draw, middle = ImageDraw.Draw(sheet), large[1] // 2
    draw.line((left, middle, left + _BAR + 2, middle), _OUTLINE, 2)
    for top, number in ((0, text), (middle - 6, f"{limit:.1f}"), (large[1] - 12, "0")):
        draw.text((left + _BAR + _GAP, top), number, "black")
    return sheet


def _coloured(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the colours (..., 3) of numbers from 0 to 1."""
    places = np.linspace(0, 1, len(_COLOURS))
    return np.stack([np.interp(share, places, channel) for channel in _COLOURS.T], axis=-1)


def _outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the outermost pixels of a region."""
    padded = np.pad(inside, 1)
    around = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~around


def _file_name(name: str, taken: set[str]) -> str:
    """Return a new name of a PNG for an image: its own, without what would lead out of the folder."""
    parts = [part.replace("\0", "").replace("\\", "_").replace(":", "_") for part in PurePosixPath(name).parts]
    kept = "/".join(part for part in parts if part not in ("/", "..", ".", "")) or "image"
    stem = kept.removesuffix(".png")
    found, number = f"{stem}.png", 1
    while found.casefold() in taken:
        number += 1
        found = f"{stem}-{number}.png"
    taken.add(found.casefold())
    return found
