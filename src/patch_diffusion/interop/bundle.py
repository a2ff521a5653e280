"""Bundling of modules of this package into one file that imports nothing from the package."""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path

from patch_diffusion.version import __version__

_PACKAGE = "patch_diffusion"
_HEADER = """\
# Made by patch_diffusion {version} (Apache-2.0) for an exported model. These modules of it, one after the other:
# {modules}
"""


def bundle(module: str) -> str:
    """Join a module and all modules of this package that it uses into one source text that runs by itself.

    So every solver, schedule and network is written once, and an exported folder has a copy. Modules must import from
    this package by name, at the top of the module, and no two of them may define the same name.

    Args:
        module: the full name of the module.

    Raises:
        ValueError: a module breaks these rules, which is a mistake in this package.

    >>> print(bundle("patch_diffusion.sampling.guidance.extrapolation").splitlines()[-1])
        return limited
    """
    found = _Bundle()
    found.add(module)
    header = _HEADER.format(version=__version__, modules="\n# ".join(found.texts))
    imports = "\n".join(found.import_lines())
    text = "\n\n\n".join(["from __future__ import annotations\n\n" + imports, *found.texts.values()])
    return header + "\n" + text + "\n"


@dataclass
class _Bundle:
    texts: dict[str, str] = field(default_factory=dict)  # source text by module, in the order in which they can run
    packages: set[str] = field(default_factory=set)  # modules of other packages that are imported whole
    imports: dict[str, set[str]] = field(default_factory=dict)  # imported names by module of other packages
    owners: dict[str, str] = field(default_factory=dict)  # the module that defines each name

    def add(self, module: str) -> None:
        """Add the source text of a module and, before it, those of the modules of this package that it imports."""
        source = _source(module)
        lines: list[str | None] = list(source.splitlines())
        for node in ast.parse(source).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                replacement = self._imported(node)
            elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                replacement = None  # annotations are not evaluated
            else:
                for name in _defined(node):
                    if self.owners.setdefault(name, module) != module:
                        raise ValueError(f"{module} and {self.owners[name]} both define {name}")
                continue
            lines[node.lineno - 1 : node.end_lineno] = [None] * ((node.end_lineno or node.lineno) - node.lineno + 1)
            lines[node.lineno - 1] = replacement
        text = "\n".join(line for line in lines if line is not None)
        self.texts[module] = re.sub(r"\n{4,}", "\n\n\n", text).strip("\n")

    def import_lines(self) -> list[str]:
        """Return the import statements for other packages, in alphabetical order."""
        plain = [f"import {name}" for name in sorted(self.packages)]
        return plain + [f"from {name} import {', '.join(sorted(self.imports[name]))}" for name in sorted(self.imports)]

    def _imported(self, node: ast.Import | ast.ImportFrom) -> str | None:
        """Record the names that a statement imports, and return the source line that replaces it, or None."""
        if isinstance(node, ast.Import):
            self.packages.update(map(ast.unparse, node.names))
            return None
        module = node.module or ""
        if module.split(".")[0] != _PACKAGE:
            for alias in node.names:
                if (module, alias.name) != ("typing", "TYPE_CHECKING") and module != "__future__":
                    self.imports.setdefault(module, set()).add(ast.unparse(alias))
            return None
        if module not in self.texts:
            self.add(module)
        if unknown := [alias.name for alias in node.names if alias.name not in self.owners]:
            raise ValueError(f"{module} does not define {unknown[0]}")
        renamed = [f"{alias.asname} = {alias.name}" for alias in node.names if alias.asname]
        return "; ".join(renamed) or None


def _source(module: str) -> str:
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ValueError(f"there is no module {module}")
    return Path(found.origin).read_text(encoding="utf-8")


def _defined(node: ast.stmt) -> list[str]:
    """Return the names that a statement at the top of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]
