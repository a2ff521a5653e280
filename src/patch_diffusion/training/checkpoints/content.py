"""What a checkpoint holds of a trainer: all that its next step depends on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from patch_diffusion.errors import InputError
from patch_diffusion.runs.model import restore_weights
from patch_diffusion.training.budget import Seen
from patch_diffusion.training.checkpoints.checkpoint import optimizer_tensors, restore_optimizer
from patch_diffusion.training.watchdog import Watchdog
from patch_diffusion.training.watching.looks import Copying

if TYPE_CHECKING:
    from patch_diffusion.training.trainer import Trainer


def content_of(trainer: Trainer) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by group and name, the trainer's own, and its state, which JSON can hold."""
    tensors = {
        "weights": trainer.network.state_dict(),
        "ema": trainer.average.denoiser.module.state_dict(),
        "optimizer": optimizer_tensors(trainer.optimizer, trainer.network),
        **{name: average.tensors for name, average in trainer.power_averages.items()},
    }
    state = {
        "seen": trainer.seen.as_dict(),
        "losses": trainer.losses.state(),
        "balance": None if trainer.balance is None else trainer.balance.state(),
        "watchdog": trainer.watchdog.state(),
        "scaler": trainer.engine.scaler.state_dict(),
        "copying": vars(trainer.copying),
    }
    return tensors, state


def restore_content(
    trainer: Trainer, folder: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]
) -> None:
    """Make the trainer what it was, by what was read from a checkpoint.

    Raises:
        InputError: something of it is missing, or is of another shape.
    """
    try:
        restore_weights(trainer.network, tensors["weights"], str(folder))
        restore_weights(trainer.average.denoiser.module, tensors["ema"], str(folder))
        for name, average in trainer.power_averages.items():
            average.restore(tensors[name])
        restore_optimizer(trainer.optimizer, trainer.network, tensors["optimizer"])
        trainer.engine.scaler.load_state_dict(state["scaler"])
        trainer.seen = Seen(**state["seen"])
        trainer.losses.restore(state["losses"])
        if trainer.balance is not None:
            trainer.balance.restore(state.get("balance") or {})
        trainer.watchdog = Watchdog.restored(state["watchdog"])
        trainer.copying = Copying(**state.get("copying", {}))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder} is damaged: {error}") from None
