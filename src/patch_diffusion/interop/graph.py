"""Export of the denoiser as a graph that needs no Python: an ONNX file, or a torch.export program."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patch_diffusion.data.latents.codec import LatentCodec
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError, need
from patch_diffusion.files import write_json
from patch_diffusion.interop.pipeline_folder import codec_facts
from patch_diffusion.interop.request import ONNX_LIBRARIES
from patch_diffusion.patches.coords import coordinate_grid

TOLERANCE = 1e-4
"""The largest allowed difference between outputs of graph and model, relative to the largest output or 1."""

_OPSET = 18

GraphCall = Callable[[tuple[Tensor, ...]], Tensor]


class DenoiserGraph(nn.Module):
    """A denoiser as a module to trace, from ``noisy, sigma, coords, labels, attributes`` to ``denoised``.

    It has the inputs that it uses: coords (2, h, w) if the network uses coordinates, labels (n,), -1 for "no class", if
    it has classes, and attributes (n, width), as `Attribute` encodes them, if it is told of any.
    A graph cannot raise an error, so an image whose label is no class comes out as NaN.

    Args:
        model: the denoiser; its preconditioning becomes part of the graph.
    """

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        self.model = model
        self.inputs: tuple[str, ...] = (
            "noisy",
            "sigma",
            *(["coords"] * model.coords),
            *(["labels"] * bool(model.num_classes)),
            *(["attributes"] * bool(model.attribute_channels)),
        )

    def forward(self, noisy: Tensor, sigma: Tensor, *rest: Tensor) -> Tensor:
        """Denoise images (n, c, h, w) of noise levels sigma (n,)."""
        given = dict(zip(self.inputs[2:], rest, strict=True))
        coords, labels = given.get("coords", noisy.new_zeros(2, 1, 1)), given.get("labels")
        attributes = given.get("attributes")
        if labels is None:
            return self.model(noisy, sigma, Conditions(coords, attributes=attributes))
        known = labels.clamp(-1, self.model.num_classes - 1)
        found = self.model(noisy, sigma, Conditions(coords, known, attributes=attributes))
        return found.where((known == labels)[:, None, None, None], torch.nan)


def example(graph: DenoiserGraph, resolution: tuple[int, int], num: int) -> tuple[Tensor, ...]:
    """Return example inputs of a graph: ``num`` images from nearly clean to pure noise, each of another class."""
    model, draws = graph.model, torch.Generator().manual_seed(0)
    sigma = torch.logspace(-2, 1.5, num)
    noisy = torch.randn(num, model.image_channels or 1, *resolution, generator=draws) * (1 + sigma[:, None, None, None])
    inputs = {
        "noisy": noisy,
        "sigma": sigma,
        "coords": coordinate_grid(*resolution),
        "labels": torch.arange(-1, num - 1) % (model.num_classes + 1) - 1,
        "attributes": torch.randn(num, model.attribute_channels, generator=draws),
    }
    return tuple(inputs[name] for name in graph.inputs)


def write_graph(model: Denoiser, folder: Path, resolution: tuple[int, int], to: str) -> tuple[list[str], float]:
    """Write a denoiser as ``model.onnx`` or ``model.pt2``, and the facts that a sampler needs as ``config.json``.

    The model is on the CPU, and the folder exists. Images have the given height and width; their number is free.

    Returns:
        Sentences on what is not exported, and the largest difference between the outputs of the file and the model.

    Raises:
        InputError: the network cannot be written in this format, or a package for it is missing.
    """
    if to == "onnx":
        for library in ONNX_LIBRARIES:
            need(library, "export", "an ONNX file")
    # torch.export.save does not recognise a channels-last weight as the whole of its storage.
    graph = DenoiserGraph(model).eval().to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    program = _traced(graph, resolution)
    run = (_onnx if to == "onnx" else _program)(graph, program, folder)
    difference = _difference(graph, resolution, run)
    facts = {
        "inputs": list(graph.inputs),
        "image_channels": model.image_channels,
        "resolution": list(resolution),
        "num_classes": model.num_classes,
        "label_range": [-1, model.num_classes - 1],
        "class_names": list(model.class_names),
        "attribute_channels": model.attribute_channels,
        "attributes": [asdict(column) for column in model.columns],
        "label_dropout": model.label_dropout,
        "process": model.process.name,
        "sigma_data": model.sigma_data,
        "sigma_min": model.sigma_min,
        "sigma_max": model.sigma_max,
        "mean_data": list(model.mean_data or [0.0]),
        "codec": codec_facts(model.codec),
    }
    write_json(folder / "config.json", facts)
    latents = isinstance(model.codec, LatentCodec)
    return ["the VAE is not carried: the graph denoises latents"] if latents else [], difference


def _program(graph: DenoiserGraph, program: torch.export.ExportedProgram, folder: Path) -> GraphCall:
    path = folder / "model.pt2"
    torch.export.save(program, path)
    again = torch.export.load(path).module()
    return lambda inputs: again(*inputs)


def _onnx(graph: DenoiserGraph, program: torch.export.ExportedProgram, folder: Path) -> GraphCall:
    import onnxruntime

    path = folder / "model.onnx"
    # An ONNX file holds at most 2 GB, so the weights of large models go into a second file.
    size = sum(tensor.nbytes for tensor in graph.state_dict().values())
    with _quiet():
        torch.onnx.export(
            program,
            (),
            path,
            input_names=list(graph.inputs),
            output_names=["denoised"],
            opset_version=_OPSET,
            external_data=size > 2**30,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        feed = {name: tensor.numpy() for name, tensor in zip(graph.inputs, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def _traced(graph: DenoiserGraph, resolution: tuple[int, int]) -> torch.export.ExportedProgram:
    """Trace a denoiser with two images into a torch.export program for any number of images."""
    batch = torch.export.Dim("batch", min=1)
    dynamic: dict[str, Any] = {"noisy": {0: batch}, "sigma": {0: batch}, "coords": None, "labels": {0: batch}}
    dynamic["attributes"] = {0: batch}
    noisy, sigma, *rest = (dynamic[name] for name in graph.inputs)
    shapes = (noisy, sigma, tuple(rest)) if rest else (noisy, sigma)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(graph, example(graph, resolution, 2), dynamic_shapes=shapes)
    except Exception as error:  # torch has many exception types for what it cannot trace
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"torch.export cannot follow the network {type(graph.model.network).__name__}: {reason}"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings and logs of torch's exporters inside the with block."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _difference(graph: DenoiserGraph, resolution: tuple[int, int], run: GraphCall) -> float:
    """Return the largest difference of graph and model, at another batch size; an error if it is beyond rounding."""
    inputs = example(graph, resolution, 3)
    with torch.no_grad():
        expected, found = graph(*inputs), run(inputs)
    difference = float((found - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise InputError(
            f"the exported graph gives other images than the model, by up to {difference:.3g}: not written"
        )
    return difference
