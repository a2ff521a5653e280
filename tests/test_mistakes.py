"""The sentences for wrong command lines."""

import io

import pytest

from patch_diffusion.cli import main


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("prepare", "DATA and OUT.zip are missing, as in: patch-diffusion prepare DATA OUT.zip"),
        ("sample r", "--out DIR is missing, as in: patch-diffusion sample RUN --out DIR"),
        ("train digits --out r --resolution abc", "--resolution takes a whole number or two of them, not 'abc'"),
        ("train digits --out r --resolution=1x", "--resolution takes a whole number or two of them, not '1x'"),
        ("train digits --out r --batch x", "--batch takes a whole number or auto, not 'x'"),
        ("train digits --out r --minutes", "--minutes needs a value, a number"),
        (
            "train digits --out r --data.fit strech",
            "crop, stretch, bucket or multiples, not 'strech'; did you mean 'str",
        ),
        ("sample r --out o --guidance-interval 1", "--guidance-interval takes two numbers, not '1'"),
        ("sample r --out o more", "sample does not take 'more'"),
        ("train digits --out r --engine.shard x", "train does not take 'x': --engine.shard takes no value"),
        ("train digits --out r --resolutoin 64", "there is no option --resolutoin; perhaps you meant --resolution"),
        ("completion csh", "completion takes bash, zsh or fish, not 'csh'"),
    ],
)
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])  # by which the parser draws its box
def test_what_is_wrong_where_and_what_to_give(line, told, encoding, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert main(line.split()) == 2
    verb = line.split()[0]
    said = capsys.readouterr().err
    assert told in said and said.endswith(f"; see patch-diffusion {verb} --help\n") and said.count("\n") == 1
    assert not {"Missing", "INT", "FLOAT", "{"} & set(said.replace("(", " ").split())
