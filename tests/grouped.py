"""Options by name, put into the groups that take them."""

from dataclasses import fields

import patch_diffusion as pd

SAMPLING = [field.name for field in fields(pd.Sampling)]
EVALUATION = [field.name for field in fields(pd.EvaluationOptions)]


def grouped(**options):
    """``sampling=`` and, if there are some of those, ``options=`` with these options, and the other keywords."""
    own = {name: options.pop(name) for name in SAMPLING if name in options}
    others = {name: options.pop(name) for name in EVALUATION if name in options}
    found = {"sampling": pd.Sampling(**own), **options}
    return {**found, "options": pd.EvaluationOptions(**others)} if others else found
