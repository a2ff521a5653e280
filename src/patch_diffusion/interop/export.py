"""Export of a trained model to other tools: a diffusers pipeline, an ONNX file or a torch.export program."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError, check_name, did_you_mean
from patch_diffusion.files import check_room, sync, user_path, write_text
from patch_diffusion.interop.card import Card, Format, history_until, read_figures
from patch_diffusion.interop.graph import write_graph
from patch_diffusion.interop.hub import push
from patch_diffusion.interop.pipeline_folder import check_pipeline, write_pipeline
from patch_diffusion.interop.request import check_request
from patch_diffusion.interop.usage import graph_usage, pipeline_usage
from patch_diffusion.patches.shapes import no_multiples
from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.runs.model import load
from patch_diffusion.runs.retention import step_of
from patch_diffusion.sampling.bind import check_one_stage
from patch_diffusion.sampling.options import Sampling
from patch_diffusion.sampling.solvers import SCHEDULES
from patch_diffusion.sampling.stochastic import SOLVERS

FORMATS = get_args(Format)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def export_model(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: Format = "diffusers",
    checkpoint: int | Literal["best"] | None = None,
    ema_length: float | None = None,
    network: nn.Module | None = None,
    vae: str | os.PathLike[str] | None = None,
    resolution: int | tuple[int, int] | None = None,
    dtype: str | None = None,
    solver: str | None = None,
    schedule: str | None = None,
    license: str | None = None,
    evaluation: str | os.PathLike[str] | None = None,
    push_to: str | None = None,
    public: bool = False,
) -> dict[str, Any]:
    """Export the model of a run folder, with averaged weights and a model card, for tools that lack this package.

    "diffusers" is a folder for ``DiffusionPipeline.from_pretrained(out, trust_remote_code=True)``, which makes the
    images that `generate` makes of the same seeds. "onnx" and "torch" are the denoiser, preconditioning included,
    ``(noisy, sigma[, coords][, labels]) -> denoised`` for any number of images of one shape, compared with the model
    before they are kept.

    Args:
        run, checkpoint, ema_length, network, vae: the run folder and options of loading, see `load`.
        out: the folder, new or empty. It gets its name only when it is complete.
        to: the format, "diffusers", "onnx" or "torch".
        resolution: side, or height and width; None: that of the training images. It is the default of a pipeline, and
            the only resolution of a graph.
        dtype: "float32", "float16" or "bfloat16", the dtype of a pipeline's stored weights; None: float32.
        solver, schedule: how a pipeline samples, see `Sampling`; None: as `generate` does. A model of flow matching
            that samples by euler and flow gets diffusers' own FlowMatchEulerDiscreteScheduler.
        license: the licence for the card, as the hub names it: "apache-2.0", "cc-by-4.0".
        evaluation: a JSON file of figures for the card, such as ``evaluate --json`` writes.
        push_to: OWNER/NAME of a repository to push the folder to.
        public: whether to make the repository public, if it is new.

    Returns:
        ``out``, ``to``, ``files``, ``difference`` (of a graph to the model; None for a pipeline), ``notes`` on what is
        not exported, and ``pushed``, the address of the repository.

    Raises:
        InputError: the run, the folder or a setting cannot be used, or the hub refuses the upload.

    >>> export_model("runs/photos", "model", to="diffusers")  # doctest: +SKIP
    """
    source, place = user_path(run), user_path(out)
    name = place.absolute().name
    folder = RunFolder(source.parent.parent if source.parent.name == "checkpoints" else source)
    _check_options(to, vae=vae, dtype=dtype, solver=solver, schedule=schedule)
    check_request(place, to, license=license, push_to=push_to, public=public)
    figures = {} if evaluation is None else read_figures(user_path(evaluation))
    config, facts = folder.read_config()
    if config.network.kind == "custom" and network is None:
        raise InputError(
            f"the network of {folder.path} is a module of your own: export it from Python, by "
            "patch_diffusion.export_model(run, out, network=...)"
        )
    model = load(run, checkpoint=checkpoint, ema_length=ema_length, network=network, vae=vae, device="cpu")
    check_one_stage(model)
    if model.inputs:
        raise InputError("a model of paired inputs is not exported yet: its exports would make images without an input")
    if to == "diffusers":
        check_pipeline(model)
    settled = Sampling(solver=solver, schedule=schedule).settled(model)
    sampler = {"solver": settled.solver, "schedule": settled.schedule}
    model.resolution = shape = _shape(model, resolution)
    weights = DTYPES[dtype or "float32"]
    _check_weights(model, weights)
    check_room(place.parent, sum(tensor.numel() for tensor in model.module.state_dict().values()) * weights.itemsize)

    step = _step_of(source, folder, checkpoint)
    with _whole(place) as partial:
        if to == "diffusers":
            notes, difference = write_pipeline(model, partial, dtype=weights, settings=sampler), None
            usage = pipeline_usage(model, push_to or name, dtype=dtype or "float32")
            told = {"sampled by": ", ".join(f"{name} {value}" for name, value in sampler.items())}
        else:
            notes, difference = write_graph(model, partial, shape, to)
            usage = graph_usage(model, shape, to)
            told = {"compared": f"its outputs differ from the model's by at most {difference:.1e}"}
        told["weights"] = _weights(step, ema_length)
        history = history_until(folder, step)
        card = Card(name, to, config, facts, shape, history, figures, told, notes, license, usage)
        write_text(partial / "README.md", card.text())
        files = sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file())
    return {
        "run": str(run),
        "out": str(place),
        "to": to,
        "files": files,
        "difference": difference,
        "notes": notes,
        "pushed": None if push_to is None else push(place, push_to, public=public),
    }


def _check_options(to: str, **options: Any) -> None:
    """Raise InputError if an option is unknown or has no effect."""
    if to not in FORMATS:
        raise InputError(f"there is no format '{to}' to export to{did_you_mean(to, FORMATS)}")
    for name, value in options.items():
        if to != "diffusers" and value is not None:
            raise InputError(f"{name} has no meaning for {to}, which holds the denoiser alone: leave it out")
    if (dtype := options["dtype"] or "float32") not in DTYPES:
        raise InputError(f"weights are stored in {', '.join(DTYPES)}, not in {dtype}")
    for kind, known in (("solver", SOLVERS), ("schedule", SCHEDULES)):
        if options[kind] is not None:
            check_name(kind, options[kind], known)


def _check_weights(model: Denoiser, dtype: torch.dtype) -> None:
    """Raise InputError if weights are not finite, or would not be in the number format in which they are stored."""
    tensors = {name: tensor for name, tensor in model.module.state_dict().items() if tensor.is_floating_point()}
    if broken := [name for name, tensor in tensors.items() if not tensor.to(dtype).isfinite().all()]:
        raise InputError(
            f"{len(broken)} of {len(tensors)} tensors of the weights are not finite as {str(dtype).partition('.')[2]} "
            f"(first: {broken[0]}), so the model makes no images: not exported"
        )


@contextmanager
def _whole(place: Path) -> Iterator[Path]:
    """Yield a temporary folder to the with block; rename it to ``place`` after the block, or delete it on an error."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{place.absolute().name}-", dir=place.parent))
    try:
        yield partial
        mask = _umask()  # temporary folders, and files that some libraries write, are private to their owner
        for path in [*partial.rglob("*"), partial]:
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
            sync(path)
        if place.is_dir():
            place.rmdir()
        partial.replace(place)
        sync(place.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _umask() -> int:
    """Return the permission mask of the process, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _shape(model: Denoiser, resolution: int | tuple[int, int] | None) -> tuple[int, int]:
    height, width = (
        (resolution, resolution) if isinstance(resolution, int) else resolution or model.resolution or (0, 0)
    )
    if min(height, width) < 1 or height % model.stride or width % model.stride:
        raise InputError(f"{no_multiples((height, width), model.stride)} as resolution")
    if model.image_channels is None:
        raise InputError("the network does not say how many channels its images have: set its attribute image_channels")
    return height, width


def _step_of(source: Path, folder: RunFolder, checkpoint: int | Literal["best"] | None) -> int | None:
    """Return the training step of the checkpoint to export; None for the newest checkpoint."""
    if source.parent.name == "checkpoints":
        return step_of(source)
    if checkpoint == "best":
        best = folder.best()
        return None if best is None else step_of(best)
    return checkpoint


def _weights(step: int | None, ema_length: float | None) -> str:
    kind = "running average" if ema_length is None else f"power-function average of length {ema_length:g}"
    return f"their {kind}{'' if step is None else f' at step {step:,}'}"
