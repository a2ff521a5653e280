"""Checks of annotated shapes, such as ``Float[Tensor, "n c *size"]``, by jaxtyping and beartype while the tests run.

In the package these names are `typing.Annotated`, which needs no library and costs nothing. Here parts of it are
imported with the types of jaxtyping by the same names. Other annotations are not checked: some tests give wrong types.
"""

import ast
import functools
import inspect
import sys
import typing
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder, SourceFileLoader

import jaxtyping
import torch
from beartype import beartype

CHECKED = ("patch_diffusion.patches", "patch_diffusion.denoise", "patch_diffusion.sampling")


def checked(thing):
    """Return a function that checks its arrays, or a class whose constructor does; what has none is left as it is."""
    if isinstance(thing, type):
        if issubclass(thing, tuple) and hasattr(thing, "_fields"):
            thing.__new__.__annotations__ = typing.get_type_hints(thing, include_extras=True)
            thing.__new__ = staticmethod(checked(thing.__new__))  # pyright: ignore[reportAttributeAccessIssue]
        elif "__dataclass_fields__" in vars(thing) and "__init__" in vars(thing):
            thing.__init__ = checked(thing.__init__)  # pyright: ignore[reportAttributeAccessIssue]
        return thing
    annotations = thing.__annotations__
    arrays = {name: hint for name in annotations if _has_array(hint := _resolved(annotations[name], thing))}
    if not arrays:
        return thing
    thing.__annotations__ = arrays
    checks = jaxtyping.jaxtyped(thing, typechecker=beartype)
    thing.__annotations__ = annotations

    @functools.wraps(thing)
    def call(*args, **kwargs):
        return (thing if torch.compiler.is_compiling() else checks)(*args, **kwargs)

    return call


def _resolved(hint, function):
    """Return the type of an annotation; None if it has a name that only type checkers import."""
    try:
        return eval(hint, {**function.__globals__, "Tensor": torch.Tensor}) if isinstance(hint, str) else hint
    except NameError:
        return None


def _has_array(hint):
    is_array = inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)
    return is_array or any(map(_has_array, typing.get_args(hint)))


class _Loader(SourceFileLoader):
    def get_code(self, fullname):  # not from the cache, which has the code without checks
        tree = ast.parse(self.get_data(self.path), self.path)
        for node in [*tree.body]:
            if isinstance(node, ast.ImportFrom) and node.module == "typing":
                names = [ast.alias(alias.asname) for alias in node.names if alias.name == "Annotated" and alias.asname]
                if names:
                    tree.body.insert(tree.body.index(node) + 1, ast.ImportFrom("jaxtyping", names, 0))
            elif isinstance(node, ast.FunctionDef):
                node.decorator_list.append(_decorator())
            elif isinstance(node, ast.ClassDef):
                node.decorator_list.insert(0, _decorator())
                for method in (each for each in node.body if isinstance(each, ast.FunctionDef)):
                    method.decorator_list.append(_decorator())
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)

    def exec_module(self, module):
        module.__dict__["_checked"] = checked
        super().exec_module(module)


def _decorator():
    return ast.Name("_checked", ast.Load())


class _Finder(MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if not fullname.startswith(CHECKED):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install():
    """Check the shapes of what is imported from now on."""
    assert not any(name.startswith(CHECKED) for name in sys.modules), "too late"
    sys.meta_path.insert(0, _Finder())
