"""Solvers and schedules by name, with the options that are theirs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from patch_diffusion.errors import InputError, did_you_mean
from patch_diffusion.sampling.solvers import dpm_solver_2m, dpm_solver_3m, euler, heun
from patch_diffusion.sampling.stochastic import ancestral, euler_maruyama, stochastic_heun

SOLVERS: dict[str, Callable[..., Tensor]] = {
    "euler": euler,
    "heun": heun,
    "dpm_solver_2m": dpm_solver_2m,
    "dpm_solver_3m": dpm_solver_3m,
    "euler_maruyama": euler_maruyama,
    "stochastic_heun": stochastic_heun,
    "ancestral": ancestral,
}
"""The solvers by the names that `generate` and ``sample --solver`` know.

>>> sorted(SOLVERS)[:3]
['ancestral', 'dpm_solver_2m', 'dpm_solver_3m']
"""


def options_of(
    kind: str, name: str, known: Mapping[str, Callable[..., Tensor]], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of the solver or schedule called ``name``: what is given, its defaults for what is None.

    Raises:
        InputError: for a name that is not ``known``, and for an option that is given and not its own.
    """
    if name not in known:
        raise InputError(f"there is no {kind} '{name}'{did_you_mean(name, known)}")
    defaults = {function: _defaults(known[function], given) for function in known}
    for option, value in given.items():
        if value is not None and option not in defaults[name]:
            users = ", ".join(f"'{function}'" for function in known if option in defaults[function])
            raise InputError(f"{option} is not an option of the {kind} '{name}', only of {users}")
    return {
        option: given[option] if given[option] is not None else default for option, default in defaults[name].items()
    }


def _defaults(function: Callable[..., Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    return {option: parameters[option].default for option in options if option in parameters}
