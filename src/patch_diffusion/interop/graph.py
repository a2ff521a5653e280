"""The denoiser as a graph without Python: an ONNX file, or a program of torch.export."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError
from patch_diffusion.patches.coords import coordinate_grid

TOLERANCE = 1e-4
"""How far a graph may be from the model it was made of, relative to the largest of the values or 1."""

_OPSET = 18


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


def write_program(model: Denoiser, path: Path, resolution: tuple[int, int]) -> float:
    """Write a program of torch.export, any number of images of one shape at a time.

    Returns:
        How far its images are from the model's, compared after it was read again.
    """
    graph = DenoiserGraph(model)
    program = _traced(graph, resolution)
    torch.export.save(program, path)
    again = torch.export.load(path).module()
    return _difference(graph, resolution, lambda inputs: again(*inputs))


def write_onnx(model: Denoiser, path: Path, resolution: tuple[int, int]) -> float:
    """Write an ONNX file, any number of images of one shape at a time.

    Returns:
        How far its images are from the model's, compared with onnxruntime.

    Raises:
        InputError: the packages for it are missing.
    """
    check_onnx()
    import onnxruntime

    graph = DenoiserGraph(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own libraries
        torch.onnx.export(
            _traced(graph, resolution),
            (),
            path,
            input_names=list(graph.inputs),
            output_names=["denoised"],
            opset_version=_OPSET,
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        feed = {name: tensor.numpy() for name, tensor in zip(graph.inputs, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return _difference(graph, resolution, run)


def check_onnx() -> None:
    """Say which extra is missing.

    Raises:
        InputError: it is.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError("an ONNX file needs onnxscript and onnxruntime: pip install 'patch_diffusion[export]'") from None


def _traced(graph: DenoiserGraph, resolution: tuple[int, int]) -> torch.export.ExportedProgram:
    """The graph, traced with two images, for any number of them."""
    inputs = example(graph, resolution, 2)
    batch = torch.export.Dim("batch", min=1)
    dynamic: dict[str, Any] = {"noisy": {0: batch}, "sigma": {0: batch}, "coords": None, "labels": {0: batch}}
    first, second, *others = (dynamic[name] for name in graph.inputs)
    shapes = (first, second, tuple(others)) if others else (first, second)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(graph.eval(), inputs, dynamic_shapes=shapes)


def _difference(graph: DenoiserGraph, resolution: tuple[int, int], run: Any) -> float:
    """The largest difference, in a batch of another size than it was traced with.

    Raises:
        InputError: it is too large to be rounding.
    """
    inputs = example(graph, resolution, 3)
    with torch.no_grad():
        expected, found = graph(*inputs), run(inputs)
    difference = float((found - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise InputError(f"the exported graph gives other images than the model, by up to {difference:.3g}: not written")
    return difference
