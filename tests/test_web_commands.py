"""Commands of the page say exactly what was asked for."""

import shlex
from pathlib import Path

import patch_diffusion as pd
from comparable_runs import make_run
from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.web.commands import edit_command, sample_command
from patch_diffusion.web.requests import EditRequest, ModelChoice, SampleRequest


def after(command: str, option: str, num: int = 1) -> list[float]:
    words = shlex.split(command)
    place = words.index(option) + 1
    return [float(word) for word in words[place : place + num]]


def test_numbers_of_many_digits_are_not_rounded():
    run = RunFolder(Path("run"))
    chosen = ModelChoice("run", ema_length=0.012345678)
    interval = (0.0123456789, 1234.56789)
    new = sample_command(
        SampleRequest(models=[chosen], sampling=pd.Sampling(guidance=1.2345678, guidance_interval=interval)),
        chosen,
        run,
    )
    assert after(new, "--ema-length") == [0.012345678]
    assert after(new, "--guidance") == [1.2345678]
    assert after(new, "--guidance-interval", 2) == list(interval)
    edited = edit_command(EditRequest(model=chosen, image="", restore="deblur", blur=1.2345678, noise=2.0), run)
    assert after(edited, "--blur") == [1.2345678]
    assert "--noise 2 " in edited


def test_a_class_is_called_by_its_name(tmp_path):
    """A place would be taken for the class of that name."""
    make_run(tmp_path / "run", facts={"num_classes": 3, "class_names": ("1", "2", "10")})
    run, chosen = RunFolder(tmp_path / "run"), ModelChoice("run")
    assert after(sample_command(SampleRequest(models=[chosen], label=2), chosen, run), "--class") == [10]
    edited = EditRequest(model=chosen, image="", restore="deblur", blur=1.0, label=1)
    assert after(edit_command(edited, run), "--class") == [2]
