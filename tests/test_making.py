"""The progress of pictures that are made, where there is no terminal."""

from types import SimpleNamespace

from patch_diffusion.cli import making
from patch_diffusion.cli.making import Making


def test_plain_lines(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(making.time, "monotonic", lambda: now[0])
    shown = Making(num=4, steps=10)
    for index, seconds in enumerate((1, 5, 1, 8, 3)):
        now[0] += seconds
        shown.step(SimpleNamespace(index=index, noisy=[0, 1]))
    now[0] += 20
    assert list(shown.each("ab")) == ["a", "b"]
    assert capsys.readouterr().err.splitlines() == [
        " 10%  step 2 of 10, 0 of 4 pictures done",
        " 25%  step 5 of 10, 0 of 4 pictures done",
        " 25%  1 of 4 pictures done",
    ]
