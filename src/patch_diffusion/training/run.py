"""The run folder: what lies where in it, and the model that comes out of it."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from patch_diffusion.config import Config, Network, changed_options, flat_options, from_dict, option_names, to_dict
from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.images import Images
from patch_diffusion.data.latents.codec import LatentCodec, codec_of
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.networks.dit import DiT
from patch_diffusion.denoise.networks.unet import STYLES, UNet
from patch_diffusion.denoise.process import PROCESSES
from patch_diffusion.errors import InputError, did_you_mean
from patch_diffusion.files import read_json, read_tensors, user_path, write_json
from patch_diffusion.training.checkpoints.retention import best_of, step_of
from patch_diffusion.training.hardware.engine import choose_device, place
from patch_diffusion.training.lock import LOCK_FILE
from patch_diffusion.training.optimizing.power_ema import average_name, combination, combine
from patch_diffusion.training.watching.log import last_measured


@dataclass(frozen=True)
class ModelFacts:
    """What the config does not say and rebuilding the model needs: what the data turned out to be."""

    image_channels: int
    resolution: tuple[int, int]
    num_classes: int
    class_names: tuple[str, ...]
    num_images: int
    sigma_data: float
    parameters: int
    augment_channels: int = 0
    codec: dict[str, Any] = field(default_factory=lambda: PixelCodec().as_dict())

    @classmethod
    def of(cls, denoiser: Denoiser, images: Images) -> ModelFacts:
        """Those of a denoiser for some images."""
        return cls(
            image_channels=images.channels,
            resolution=images.resolution,
            num_classes=denoiser.num_classes,
            class_names=images.class_names if denoiser.num_classes else (),
            num_images=len(images),
            sigma_data=denoiser.sigma_data,
            parameters=sum(parameter.numel() for parameter in denoiser.parameters()),
            augment_channels=denoiser.augment_channels,
            codec=images.codec.as_dict(),
        )


@dataclass(frozen=True)
class RunFolder:
    """``config.json``, ``model.safetensors``, ``checkpoints/step-NNNNNNNN/``, ``log.jsonl``, ``samples/``."""

    path: Path

    @property
    def config_file(self) -> Path:
        """Options of the run and facts of the model."""
        return self.path / "config.json"

    @property
    def model_file(self) -> Path:
        """The averaged weights."""
        return self.path / "model.safetensors"

    @property
    def log_file(self) -> Path:
        """One JSON object a line."""
        return self.path / "log.jsonl"

    def sample_file(self, step: int) -> Path:
        """The picture of samples made after ``step`` steps."""
        return self.path / "samples" / f"step-{step:08d}.png"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after ``step`` steps."""
        return self.path / "checkpoints" / f"step-{step:08d}"

    def checkpoints(self) -> list[Path]:
        """All complete checkpoints, oldest first."""
        return sorted(path for path in self.path.glob("checkpoints/step-*") if path.name[5:].isdigit())

    def best(self) -> Path | None:
        """The best checkpoint, by what the run says is best; None where that was not measured."""
        return best_of(self.checkpoints(), self.read_config()[0].checkpoint_by)

    def is_run(self) -> bool:
        """Whether there is a run here."""
        return self.config_file.exists()

    def check(self, config: Config, facts: ModelFacts, allow: Collection[str] = ()) -> list[str]:
        """Refuse a place that holds something else, or a run with other options, data or network.

        Args:
            config, facts: of what is to be trained here.
            allow: names of options that may differ from those of the run that is here.

        Returns:
            Which of those do, as "batch: 16, 32".
        """
        known = {*option_names(), *vars(facts)}
        for name in allow:
            if name not in known:
                raise InputError(f"there is no option '{name}' to allow{did_you_mean(name, known)}")
        if self.is_run():
            stored, stored_facts = self.read_config()
            gone = facts.num_images != stored_facts.num_images and "num_images" not in allow
            gone = gone and config.data.held_out == stored.data.held_out
            if stored.data.source == config.data.source and gone:
                raise InputError(
                    f"{self.path} holds a run on {stored_facts.num_images:,} images, but there are now "
                    f"{facts.num_images:,} in {config.data.source or 'the data'}: bring the data back as it was, or "
                    "choose another folder"
                )
            changed = changed_options(stored, config)
            if fixed := [name for name in changed if name in _FIXED and name in allow]:
                raise InputError(
                    f"{fixed[0]} cannot change in a run that goes on, as its checkpoints do not hold what another one "
                    "keeps: choose another folder"
                )
            if refused := [name for name in changed if name not in allow]:
                raise InputError(
                    f"{self.path} holds a run with other options ({', '.join(refused)}): continue it with its own, "
                    f"choose another folder, or allow the change by --allow {' '.join(refused)}"
                )
            differ = [name for name, value in vars(facts).items() if _differs(value, getattr(stored_facts, name))]
            if refused := [name for name in differ if name not in allow]:
                raise InputError(
                    f"{self.path} holds a run on other data or another network ({', '.join(refused)} differ): choose "
                    "another folder"
                )
            before, now = flat_options(stored) | vars(stored_facts), flat_options(config) | vars(facts)
            return [f"{name}: {before[name]}, now {now[name]}" for name in changed + differ]
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file: give a folder for the run")
        found = (entry.name for entry in self.path.iterdir()) if self.path.is_dir() else ()
        # A run that was stopped before it wrote anything has left its lock.
        others = sorted(name for name in found if name != LOCK_FILE)
        if others:
            more = ", ..." if len(others) > 1 else ""
            raise InputError(
                f"{self.path} holds other files ({others[0]}{more}) and no run: choose a new or an empty folder"
            )
        return []

    def write_config(self, config: Config, facts: ModelFacts) -> None:
        """Store what runs."""
        content = {"version": version("patch_diffusion"), **to_dict(config), "model": asdict(facts)}
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.config_file, content)

    def read_config(self) -> tuple[Config, ModelFacts]:
        """What `write_config` stored."""
        if not self.is_run():
            missing = "holds no run (no config.json)" if self.path.is_dir() else "does not exist"
            raise InputError(f"{self.path} {missing}: give the --out folder of a training run")
        content = read_json(self.config_file)
        content.pop("version", None)
        facts = content.pop("model", None)
        config = from_dict(content, where=str(self.config_file))
        try:
            facts = ModelFacts(**facts)
            height, width = facts.resolution
        except (TypeError, ValueError):
            raise InputError(f"{self.config_file} is damaged: its 'model' is not that of a run") from None
        return config, ModelFacts(
            **{**vars(facts), "resolution": (height, width), "class_names": tuple(facts.class_names)}
        )


_FIXED = ("optimizer.kind", "ema.lengths")
# The class of each kind of network, and the options that others have and it has not.
_UNET_ONLY, _DIT_ONLY = {"multipliers", "blocks", "attention"}, {"depth", "heads", "token"}


def _differs(fact: Any, stored: Any) -> bool:
    """The autoencoder of latents may be elsewhere, or have a better decoder: they are the same latents."""
    if isinstance(fact, dict) and isinstance(stored, dict):
        return any(fact.get(name) != stored.get(name) for name in (fact.keys() | stored.keys()) - {"vae", "digest"})
    return fact != stored


def build_network(
    options: Network,
    image_channels: int,
    num_classes: int,
    *,
    augment_channels: int = 0,
    coords: bool,
    context: int | None = None,
) -> nn.Module:
    """The network that the options describe."""
    if options.kind == "custom":
        raise InputError("this run's network is a module of your own: give it as network=..., from Python")
    given = {name: value for name, value in vars(options).items() if value is not None and name != "kind"}
    for name in (_DIT_ONLY if options.kind in STYLES else _UNET_ONLY) & given.keys():
        raise InputError(f"network.{name} has no meaning for network.kind {options.kind}: leave it out")
    given |= {"num_classes": num_classes, "augment_channels": augment_channels, "coords": coords}
    given["context"] = context is not None
    try:
        if options.kind in STYLES:
            return UNet(image_channels, kind=options.kind, **given)
        return DiT(image_channels, **given)
    # The networks' own files import nothing of the package, so they raise Python's error.
    except ValueError as error:
        raise InputError(str(error)) from None


def load(
    run: str | os.PathLike[str],
    *,
    checkpoint: int | Literal["best"] | None = None,
    ema_length: float | None = None,
    device: str = "auto",
    network: nn.Module | None = None,
    vae: str | os.PathLike[str] | None = None,
) -> Denoiser:
    """The model of a run, with averaged weights, ready to sample from. Nothing is unpickled.

    Args:
        run: the run folder, or one of its checkpoints.
        checkpoint: the step of a checkpoint, instead of the newest weights; "best": the one that is, by what
            ``checkpoint_by`` of the run says.
        ema_length: length of a power-function average, put together from those that ``ema.lengths`` kept in the
            checkpoints so far, see `power_ema`; the ordinary average where None.
        device: see `choose_device`.
        vae: for a model of latents: folder of an autoencoder to decode with, in place of the one that made them.
        network: for a run that trained a module of your own: such a module, to be filled with the weights.

    Raises:
        InputError: no run there, or a damaged one.

    >>> model = load("runs/digits")
    >>> model(torch.zeros(1, 1, 16, 16), torch.ones(1), coordinate_grid(16, 16)).shape
    torch.Size([1, 1, 16, 16])
    """
    path = user_path(run)
    if path.parent.name == "checkpoints":
        folder, weights = RunFolder(path.parent.parent), path / "ema.safetensors"
    else:
        folder = RunFolder(path)
        if checkpoint == "best":
            best = folder.best()
            if best is None:
                raise InputError(f"{path} has no best checkpoint: train with --held-out 0.05 --checkpoint-best")
            checkpoint = step_of(best)
        weights = folder.model_file if checkpoint is None else folder.checkpoint(checkpoint) / "ema.safetensors"
    config, facts = folder.read_config()
    if not weights.exists():
        steps = [str(int(path.name[5:])) for path in folder.checkpoints()]
        raise InputError(
            f"{weights} is missing: "
            + (f"there are checkpoints of the steps {', '.join(steps)}" if steps else "the run has no checkpoint yet")
        )
    if network is None:
        network = build_network(
            config.network,
            facts.image_channels,
            facts.num_classes,
            augment_channels=facts.augment_channels,
            coords=config.patches.coords,
            context=config.patches.context,
        )
    codec = codec_of(facts.codec)
    if vae is not None:
        if not isinstance(codec, LatentCodec):
            raise InputError(f"{path} holds a model of pixels, which takes no VAE")
        codec = codec.decoded_by(os.fspath(vae))
    model = Denoiser(
        network,
        facts.sigma_data,
        process=PROCESSES[config.noise.process],
        coords=config.patches.coords,
        context=config.patches.context,
        resolution=facts.resolution,
        class_names=facts.class_names,
        codec=codec,
        sigma_min=config.noise.sigma_min,
        sigma_max=config.noise.sigma_max,
    )
    tensors = read_tensors(weights) if ema_length is None else _average(folder, config, weights, ema_length)
    restore_weights(network, tensors, str(weights))
    return place(model, choose_device(device)).eval()


def _average(folder: RunFolder, config: Config, weights: Path, length: float) -> dict[str, torch.Tensor]:
    """The power-function average of this length at the checkpoint of ``weights``, or at the newest."""
    lengths = config.ema.lengths
    if not lengths:
        raise InputError(f"{folder.path} has kept no averages of other lengths: train with --ema.lengths 0.05 0.1")
    checkpoints = folder.checkpoints()
    if weights.parent in checkpoints:
        checkpoints = checkpoints[: checkpoints.index(weights.parent) + 1]
    if not checkpoints:
        raise InputError(f"{folder.path} has no checkpoint, and averages of other lengths are put together from those")
    images = {path: int(read_json(path / "state.json")["seen"]["images"]) for path in checkpoints}
    checkpoints = [path for path in checkpoints if images[path]]  # an average of nothing is none
    if not checkpoints:
        raise InputError(f"{folder.path} has no checkpoint after a step yet, which averages are put together from")
    kept = [path / f"{average_name(each)}.safetensors" for path in checkpoints for each in lengths]
    for path in kept:
        if not path.exists():
            raise InputError(f"{path} is missing: without {path.parent} the average is put together from the others")
    times = [images[path] for path in checkpoints for _ in lengths]
    shares = combination(times, list(lengths) * len(checkpoints), length, times[-1])
    return combine([read_tensors(path) for path in kept], list(shares))


def restore_weights(network: nn.Module, weights: dict[str, torch.Tensor], where: str) -> None:
    """Fill a network, or say why these weights are not its own."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{where} does not fit the network that config.json describes: {reason}") from None


def describe(run: str | os.PathLike[str]) -> dict[str, Any]:
    """What is in a run folder: options, facts of the model, checkpoints, and the last line of the log.

    Returns:
        Ready for JSON: ``run``, ``model``, ``options`` (those of `Config`), ``progress`` (of the log, empty before its
        first line), ``checkpoints`` (their steps), ``best_checkpoint``, ``pictures`` (paths), and ``complete``.

    Raises:
        InputError: no run there, or a damaged one.

    >>> describe("runs/digits")["checkpoints"]
    [1]
    """
    folder = RunFolder(user_path(run))
    config, facts = folder.read_config()
    progress = last_measured(folder.log_file)
    best = folder.best()
    return {
        "run": str(folder.path),
        "model": asdict(facts),
        "options": to_dict(config),
        "progress": progress,
        "checkpoints": [step_of(path) for path in folder.checkpoints()],
        "best_checkpoint": None if best is None else step_of(best),
        "pictures": [str(path) for path in sorted(folder.path.glob("samples/*.png"))],
        "complete": progress.get("spent", 0) >= 1,
    }
