"""Counts the docstrings of src that begin with What, Of, Those, That or Whether: those that name no thing.

    python docs/words.py       # fails above the number that is allowed
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ALLOWED = 20

_SOURCE = Path(__file__).parent.parent / "src"


def docstrings() -> Iterator[tuple[Path, ast.Expr, str]]:
    """Yield every docstring of a module, class, function or attribute."""
    for path in sorted(_SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for statement in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
                value = statement.value if isinstance(statement, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield path, statement, value.value


def main() -> int:
    """Print the docstrings that begin so; return 1 if they are too many."""
    found = [
        (path.relative_to(_SOURCE), statement.lineno, text.strip().splitlines()[0])
        for path, statement, text in docstrings()
        if re.match(r"\W*(What|Of|Those|That|Whether)\b", text)
    ]
    for path, line, text in found:
        print(f"{path}:{line}: {text}")
    print(f"{len(found)} docstrings begin with What, Of, Those, That or Whether; {ALLOWED} are allowed")
    return int(len(found) > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
