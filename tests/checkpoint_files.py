"""Checkpoints read as a whole, with all their checksums."""

from patch_diffusion.training.checkpoints.checkpoint import read_groups, verify


def read_checkpoint(folder):
    """The tensors of a checkpoint, by group and name, and its state as a dict; all checksums are verified."""
    state = verify(folder)
    return read_groups(folder, state), {key: value for key, value in state.items() if key != "checksums"}
