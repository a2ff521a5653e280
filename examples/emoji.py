"""The emoji of the README: write their pictures, categories and names as a zip and a table that `train` takes.

    python examples/emoji.py package/

The folder is that of the npm package emoji-datasource-google 16.0.0, see docs/examples.md. Transparent pictures of
64 x 64 pixels stay as they are. Skin tones of one emoji have its name, so that `--data.group caption` keeps them
together in the training images or in those held out.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import zipfile
from pathlib import Path
from typing import Any


def rows_of(emoji: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (file, label, caption) of an emoji and of its skin tones, of those that have a picture.

    Pairs of people of two skin tones are left out: 295 more pictures, of few scenes.
    """
    tones = {key: form for key, form in emoji.get("skin_variations", {}).items() if "-" not in key}
    forms = [emoji, *tones.values()]
    return [(form["image"], emoji["category"], emoji["name"].lower()) for form in forms if form["has_img_google"]]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the folder of the unpacked package")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of emoji.zip and emoji.csv")
    options = parser.parse_args(words)
    listed = json.loads((options.package / "emoji.json").read_text(encoding="utf-8"))
    rows = sorted(row for emoji in listed for row in rows_of(emoji))
    with zipfile.ZipFile(options.out / "emoji.zip", "w") as archive:
        for file, _, _ in rows:
            archive.write(options.package / "img" / "google" / "64" / file, file)
    with (options.out / "emoji.csv").open("w", encoding="utf-8", newline="") as table:
        csv.writer(table).writerows([("file", "label", "caption"), *rows])
    print(f"{len(rows):,} emoji are in {options.out / 'emoji.zip'}, their categories and names in emoji.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
