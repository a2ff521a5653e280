"""The operations of a training step, counted once for all networks that are alike: a trainer counts for each size.

Counting is two thirds of the time that a small trainer takes to be made. What is not plainly one of our networks, as it
is in the package, is counted each time. `test_budget.py` tests the counting itself.
"""

from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.networks.dit import DiT
from patch_diffusion.denoise.networks.edm2 import EDM2UNet
from patch_diffusion.denoise.networks.unet import UNet
from patch_diffusion.training.budget import training_flops

_FORWARD = {each: each.forward for each in (Denoiser, UNet, EDM2UNet, DiT)}
_COUNTED = {}


def flops_once(denoiser, channels, shape, *, attention=True, passes=3):
    """`training_flops`, or what it has counted before for the same."""
    network = denoiser.network
    parts = (denoiser, network)
    if not all(_FORWARD.get(type(part)) is type(part).forward and "forward" not in vars(part) for part in parts):
        return training_flops(denoiser, channels, shape, attention=attention, passes=passes)
    weights = [(name, tensor.shape, tensor.dtype, tensor.device) for name, tensor in network.state_dict().items()]
    key = str((type(network), network.settings, weights, network.recompute, channels, shape, attention, passes))
    if key not in _COUNTED:
        _COUNTED[key] = training_flops(denoiser, channels, shape, attention=attention, passes=passes)
    return _COUNTED[key]
