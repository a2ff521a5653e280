"""The denoiser as a graph without Python: an ONNX file, or a program of torch.export."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patch_diffusion.data.latents.codec import LatentCodec
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError
from patch_diffusion.files import write_json
from patch_diffusion.interop.pipeline_folder import codec_facts
from patch_diffusion.patches.coords import coordinate_grid

TOLERANCE = 1e-4
"""How far a graph may be from the model it was made of, relative to the largest of the values or 1."""

_OPSET = 18

Run = Callable[[tuple[Tensor, ...]], Tensor]


class DenoiserGraph(nn.Module):
    """``(noisy, sigma[, coords][, labels]) -> denoised``: what `Denoiser` is called with, of what it uses.

    Args:
        model: the denoiser; its preconditioning becomes part of the graph.
        coords: whether the network is given coordinates (2, h, w).
        labels: whether it is given classes (n,), -1 for "no class".
    """

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        self.model = model
        self.inputs = ("noisy", "sigma", *(["coords"] * model.coords), *(["labels"] * bool(model.num_classes)))

    def forward(self, noisy: Tensor, sigma: Tensor, *rest: Tensor) -> Tensor:
        """The denoised images (n, c, h, w)."""
        given = dict(zip(self.inputs[2:], rest, strict=True))
        coords = given.get("coords", noisy.new_zeros(2, 1, 1))
        return self.model(noisy, sigma, coords, given.get("labels"))


def example(graph: DenoiserGraph, resolution: tuple[int, int], num: int) -> tuple[Tensor, ...]:
    """Inputs of a graph: images from nearly clean to nothing but noise, each of another class."""
    model, draws = graph.model, torch.Generator().manual_seed(0)
    sigma = torch.logspace(-2, 1.5, num)
    noisy = torch.randn(num, model.image_channels or 1, *resolution, generator=draws) * (1 + sigma[:, None, None, None])
    inputs = {
        "noisy": noisy,
        "sigma": sigma,
        "coords": coordinate_grid(*resolution),
        "labels": torch.arange(-1, num - 1) % (model.num_classes + 1) - 1,
    }
    return tuple(inputs[name] for name in graph.inputs)


def write_graph(model: Denoiser, folder: Path, resolution: tuple[int, int], to: str) -> tuple[list[str], float]:
    """Write ``model.onnx`` or ``model.pt2``, and ``config.json`` with what a sampler needs to know.

    Args:
        model: on the CPU.
        folder: the place, which is there.
        resolution: height and width of the images; their number is free.
        to: "onnx" or "torch".

    Returns:
        What is not carried, a sentence each; and how far the images of the file are from the model's.

    Raises:
        InputError: the network cannot be written so.
    """
    if to == "onnx":
        check_onnx()
    # Weights that lie channels last in memory are not taken for whole ones when a program is saved.
    graph = DenoiserGraph(model).eval().to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    program = _traced(graph, resolution)
    run = (_onnx if to == "onnx" else _program)(graph, program, folder)
    difference = _difference(graph, resolution, run)
    height, width = resolution
    facts = {
        "inputs": list(graph.inputs),
        "image_channels": model.image_channels,
        "resolution": [height, width],
        "num_classes": model.num_classes,
        "class_names": list(model.class_names),
        "label_dropout": model.label_dropout,
        "process": model.process.name,
        "sigma_data": model.sigma_data,
        "sigma_min": model.sigma_min,
        "sigma_max": model.sigma_max,
        "codec": codec_facts(model.codec),
    }
    write_json(folder / "config.json", facts)
    latents = isinstance(model.codec, LatentCodec)
    return ["the VAE is not carried: the graph denoises latents"] if latents else [], difference


def _program(graph: DenoiserGraph, program: torch.export.ExportedProgram, folder: Path) -> Run:
    path = folder / "model.pt2"
    torch.export.save(program, path)
    again = torch.export.load(path).module()
    return lambda inputs: again(*inputs)


def _onnx(graph: DenoiserGraph, program: torch.export.ExportedProgram, folder: Path) -> Run:
    import onnxruntime

    path = folder / "model.onnx"
    # A file of ONNX holds at most 2 GB; what is more lies beside it.
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


def check_onnx() -> None:
    """Say which extra is missing.

    Raises:
        InputError: it is.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError(
            "an ONNX file needs onnxscript and onnxruntime: pip install 'patch_diffusion[export]'"
        ) from None


def _traced(graph: DenoiserGraph, resolution: tuple[int, int]) -> torch.export.ExportedProgram:
    """The graph, traced with two images, for any number of them."""
    batch = torch.export.Dim("batch", min=1)
    dynamic: dict[str, Any] = {"noisy": {0: batch}, "sigma": {0: batch}, "coords": None, "labels": {0: batch}}
    noisy, sigma, *rest = (dynamic[name] for name in graph.inputs)
    shapes = (noisy, sigma, tuple(rest)) if rest else (noisy, sigma)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(graph, example(graph, resolution, 2), dynamic_shapes=shapes)
    except Exception as error:  # of the many kinds that torch has for what it cannot trace
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"torch.export cannot follow the network {type(graph.model.network).__name__}: {reason}"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say of other libraries."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _difference(graph: DenoiserGraph, resolution: tuple[int, int], run: Run) -> float:
    """The largest difference, in a batch of another size than it was traced with.

    Raises:
        InputError: it is too large to be rounding.
    """
    inputs = example(graph, resolution, 3)
    with torch.no_grad():
        expected, found = graph(*inputs), run(inputs)
    difference = float((found - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise InputError(
            f"the exported graph gives other images than the model, by up to {difference:.3g}: not written"
        )
    return difference
