"""Hostile values, and damages of files: of their structure, JSON or a table, or of their bytes.

Everything is drawn by a `random.Random`, and told by its ``repr`` as far as it is needed to make it again.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


class Raw(str):
    """Text of a hostile value; long ones are told by their begin and length."""

    def __repr__(self):
        return super().__repr__() if len(self) <= 60 else f"<{self[:20]!r}... {len(self):,} characters>"


DEEP = 100_000
NUMBERS = [
    *("0", "-1", "1", "2", "3", "5", "16", "100", "1000000000", str(2**31), str(2**63)),
    *("1" + 20 * "0", "-1" + 20 * "0"),
    *("9" * 400, "9" * 5000, "0.5", "-0.5", "1.0", "0.001", "1e-300", "1e20", "1e308", "-1e308"),
    *(2 * ["NaN", "Infinity", "-Infinity", "1e999"]),
]
TEXTS = [
    *("", "x", "NaN", "1e9", "1/2", "uint8", "edm", "latents", "..", "../../../etc/passwd", "/dev/null", "digits", "0"),
    *("a\0b", "\x1b[31m red\r\n two\nlines", "é", "e\u0301", "\ud800", "²", "٣", "\u202e", "<script>alert(1)</script>"),
    *("x" * 300, "x" * DEEP, "wds:{0..9999999999}.tar", "%s %d {0}", "auto", "random", "8x12", "4x6", "step-00000001"),
]
WORDS = ["null", "true", "false", "NaN", "nul", "'a'", ""]
LISTS = [
    *("[]", "[null]", "[[1]]", "[1, 2]", '["a", "b"]', "[NaN, NaN]", "[1e9, 1e9]", "[1000000000, 1000000000]"),
    "[0, 0]",
    *("[-1, 8]", "[8, 12, 3]", "[1e999]", "[true]", '[""]', "[" * DEEP + "]" * DEEP, "[" + "0," * DEEP + "0]"),
]
OBJECTS = [
    *("{}", '{"": {}}', '{"a": 1}', '{"8x12": null}', '{"8x12": "x"}', '{"8x12": NaN}', '{"x": 1e999}', '{"1/2": 0}'),
    *('{"a":' * DEEP + "1" + "}" * DEEP, '{"8x12": [1]}', '{"\\u001b[2J": 0.5}', '{"1e9x1e9": 1.0}'),
]
KINDS = {
    bool: WORDS,
    int: NUMBERS,
    float: NUMBERS,
    str: [json.dumps(text) for text in TEXTS],
    list: LISTS,
    dict: OBJECTS,
}
ALL = [text for kind in (WORDS, NUMBERS, KINDS[str], LISTS, OBJECTS) for text in kind]


def hostile(draw, value):
    """Text of JSON in place of a value, of its own type more often than of another."""
    pool = KINDS.get(type(value), ALL) if draw.random() < 0.7 else ALL
    if draw.random() < 0.2:
        pool = [str(draw.randint(0, 64)), str(draw.randint(-(10**6), 10**6)), repr(draw.gauss(0, 10))]
        pool += [json.dumps(letters(draw))]
    return Raw(draw.choice(pool))


def letters(draw):
    """Some characters, of any script."""
    return "".join(chr(draw.choice([draw.randrange(128), draw.randrange(0xD800)])) for _ in range(draw.randint(1, 8)))


@dataclass(frozen=True)
class Change:
    """Of JSON: a value at some place of the tree is replaced, removed, given twice, or another is added to it."""

    how: str
    path: tuple
    value: Raw
    line: int = 0

    @classmethod
    def drawn(cls, draw, content, favoured=None):
        """Draw a change of JSON, half of them inside a favoured part of it; of a log, in any line."""
        lines = content.splitlines()
        try:
            tree, line = json.loads(content), 0
        except ValueError:
            line = max(draw.randrange(len(lines)), draw.randrange(len(lines)))
            tree = json.loads(lines[line])
        paths = list(paths_of(tree))
        inside = [path for path in paths if path[:1] == (favoured,)]
        path = draw.choice(inside if inside and draw.random() < 0.5 else paths)
        value = hostile(draw, at(tree, path))
        if isinstance(at(tree, path), dict) and draw.random() < 0.5:
            names = ["x", "", "version", "step", "loss", "\x1b[31m", "a\nb", "é", "\udce9", "__class__", "1", "8x12"]
            return cls("add", (*path, draw.choice(names)), value, line)
        how = draw.choice(["replace"] * 7 + ["remove", "remove", "twice"]) if path else "replace"
        return cls(how, path, value, line)

    def applied(self, content):
        """Return the altered content; as it is if it is no JSON any more, or has no such place."""
        lines = content.splitlines(keepends=True) or [b""]
        try:
            json.loads(content)
            whole = True
        except (ValueError, RecursionError):
            whole = False
        try:
            root = [json.loads(content if whole else lines[self.line])]
            parent: Any
            parent, key = at(root, (0, *self.path)[:-1]), (0, *self.path)[-1]
            if self.how == "remove":
                del parent[key]
            else:
                parent["@key@" if self.how == "twice" and isinstance(parent, dict) else key] = "@value@"
        except (ValueError, RecursionError, LookupError, TypeError):
            return content
        text = json.dumps(root[0], indent=1 if whole else None).replace('"@key@"', json.dumps(key), 1)
        text = text.replace('"@value@"', self.value, 1).encode()
        if whole:
            return text
        lines[self.line] = text.replace(b"\n", b"") + b"\n"
        return b"".join(lines)


def paths_of(tree, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value in a tree, the whole first."""
    yield path
    for key in range(len(tree)) if isinstance(tree, list) else tree if isinstance(tree, dict) else ():
        yield from paths_of(tree[key], (*path, key))


def at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


@dataclass(frozen=True)
class Bytes:
    """Of any file: bytes at a place are cut off, flipped, put in, or replaced; or all of it is another content."""

    how: str
    place: int
    value: bytes

    @classmethod
    def drawn(cls, draw, content):
        """Draw a damage of bytes."""
        how = draw.choice(["cut", "flip", "flip", "put in", "put in", "begin", "end", "zeros", "twice", "all"])
        value = draw.choice(BYTES) if draw.random() < 0.7 else draw.randbytes(draw.randint(1, 8))
        return cls(how, draw.randint(0, len(content)), value)

    def applied(self, content):
        """Return the altered content."""
        place = self.place
        flipped = bytes(byte ^ 0x55 for byte in content[place : place + 1])
        return {
            "cut": content[:place],
            "flip": content[:place] + flipped + content[place + 1 :],
            "put in": content[:place] + self.value + content[place:],
            "begin": self.value + content,
            "end": content + self.value,
            "zeros": content[:place] + bytes(max(0, len(content) - place)),
            "twice": content + content[place:],
            "all": self.value,
        }[self.how]


BYTES = [
    *(b"", b"\0", b"\xff\xfe\0garbage\n", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\n", b"\n\n{}\n", b"[]", b"null", b"1"),
    *('{"step": 1, "loss": 5}\n'.encode("utf-16"), b'{"step": 1, "loss": 5}\n', b"[" * DEEP, b"\x1b[2J", b" " * 10**6),
    *(b"}", b'"', b"{", b",", b"9" * 5000, b'{"step": 9, "note": "\x1b[2J"}\n'),
    b'{"step": "x", "spent": 1.0, "loss": {}}\n',
]


def damages_of(draw, content, favoured=None, structure=0.8):
    """One damage of a file or two, mostly of its structure."""
    return [
        Change.drawn(draw, content, favoured) if draw.random() < structure else Bytes.drawn(draw, content)
        for _ in range(draw.choice([1, 1, 1, 2]))
    ]


@dataclass(frozen=True)
class Cell:
    """Of a table: one cell of a row is another text, or a row of one text is put in."""

    how: str
    row: int
    text: Raw

    def applied(self, content):
        """Return the altered table."""
        rows = content.decode("latin-1").split("\n")
        row = self.row % len(rows)
        new = self.text.encode("utf-8", "surrogatepass").decode("latin-1")
        file, _, label = rows[row].partition(",")
        made = {"file": [f"{new},{label}"], "label": [f"{file},{new}"], "row": [new, rows[row]], "lost": []}
        made |= {"all": [f"{file},{new}"], "more": [f"{rows[row]},{new}"], "twice": 2 * [rows[row]]}
        rows[row : row + 1] = made[self.how]
        if self.how == "all":
            rows = [rows[0], *(f"{line.partition(',')[0]},{new}" for line in rows[1:])]
        return "\n".join(rows).encode("latin-1")


def altered(path, damages, seal=False):
    """Alter a file; seal a state by its checksum, so that it is read."""
    content = path.read_bytes()
    for damage in damages:
        content = damage.applied(content)
    if seal:
        with contextlib.suppress(ValueError, RecursionError, AttributeError, TypeError):
            state = json.loads(content)
            state.pop("checksum", None)
            text = json.dumps(state, sort_keys=True).encode()
            state["checksum"] = hashlib.blake2b(text, digest_size=16).hexdigest()
            content = json.dumps(state).encode()
    path.write_bytes(content)
