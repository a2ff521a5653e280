"""Old keyword arguments, of the previous version, which functions still accept for one release."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def takes_old_keywords(**groups: type[Any]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator with which a function still accepts old keywords that are now fields of its option groups.

    A call with old keywords gives one warning, which shows the new way to write it. The function's signature shows only
    the new way. ``groups`` are the dataclasses of options, by the names of the parameters that take them.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)
        names = {name: {each.name for each in fields(kind)} for name, kind in groups.items()}
        old = set[str]().union(*names.values()) - set(signature.parameters)

        def folded(*args: Any, **keywords: Any) -> inspect.BoundArguments:
            new = {name: value for name, value in keywords.items() if name not in old}
            bound, advice = signature.bind_partial(*args, **new), []
            for group, kind in groups.items():
                if given := {name: keywords[name] for name in keywords if name in old & names[group]}:
                    bound.arguments[group] = replace(bound.arguments.get(group) or kind(), **given)
                    advice.append(f"{group}=pd.{kind.__name__}({', '.join(f'{name}=...' for name in given)})")
            told = ", ".join(name for name in keywords if name in old)
            text = f"{function.__name__} takes {told} as keywords for one more release only: give {', '.join(advice)}"
            warnings.warn(text, DeprecationWarning, stacklevel=3)
            return bound

        @wraps(function)
        def wrapper(*args: P.args, **keywords: P.kwargs) -> T:
            if old.isdisjoint(keywords):
                return function(*args, **keywords)
            bound = folded(*args, **keywords)
            return function(*bound.args, **bound.kwargs)

        return wrapper

    return decorate
