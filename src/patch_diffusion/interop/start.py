"""A model to train on from, whatever it is: a run, a published file, or a folder of a diffusers pipeline."""

from __future__ import annotations

from typing import NamedTuple

from patch_diffusion.denoise.carry import Carried
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError, about
from patch_diffusion.interop.diffusers_folder import read_pipeline
from patch_diffusion.interop.edm_file import read_published
from patch_diffusion.interop.edm_import import recognise
from patch_diffusion.runs.folder import RunFolder, step_in
from patch_diffusion.runs.model import load, model_of
from patch_diffusion.runs.named import ModelName, model_name


class Start(NamedTuple):
    """A model to train on from: as a `Denoiser` on the CPU, and the first lines of the table of what is carried."""

    model: Denoiser
    rows: list[Carried]


@about("start")
def open_start(source: str) -> Start:
    """Open the model to train on from, without running any code of it.

    Args:
        source: a run folder or a checkpoint in one, "RUN:best", "RUN:step:400" or "RUN:ema:0.05"; a file that
            `import_model` takes; or the folder of a diffusers pipeline with a ``UNet2DModel``, or that of the network.

    Raises:
        InputError: there is none, it is damaged, or it is not supported.

    >>> open_start("runs/digits").model.resolution
    (16, 16)
    """
    name = model_name(source)
    if name.run.is_run():
        return _run(source, name)
    if name.path.is_dir():
        model, rows = read_pipeline(name.path)
        return Start(model, [Carried("source", source, "a pipeline of diffusers"), *rows])
    published = read_published(name.path)
    try:
        config, facts, weights = recognise(published)
    except InputError as error:
        raise error.reworded(f"{name.path}: {error}") from None
    model = model_of(config, facts, weights, str(name.path)).eval()
    return Start(model, [Carried("source", source, "a published network")])


def _run(source: str, name: ModelName) -> Start:
    run = RunFolder(name.run.path)
    if run.read_config()[0].network.kind == "custom":
        raise InputError(
            f"the network of {run.path} is a module of your own: load its weights into yours in Python, and give that "
            "to Trainer"
        )
    model = load(name.path, checkpoint=name.checkpoint, ema_length=name.ema_length, device="cpu")
    step = name.checkpoint if isinstance(name.checkpoint, int) else step_in(name.path)
    of = "the best checkpoint" if name.checkpoint == "best" else "a run" if step is None else f"step {step:,}"
    average = "average" if name.ema_length is None else f"average of length {name.ema_length:g}"
    return Start(model, [Carried("source", source, f"{average} of {of}")])
