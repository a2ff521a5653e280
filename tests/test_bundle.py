import ast
import subprocess
import sys

import pytest

from patch_diffusion.interop.bundle import bundle

pytestmark = pytest.mark.slow

CARRIED = ("pipeline", "scheduler", "network_unet", "network_edm2", "network_dit", "network_timestep")


@pytest.mark.parametrize("name", CARRIED)
def test_nothing_of_this_package_is_imported(name):
    text = bundle(f"patch_diffusion.interop.exported_code.{name}")
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add((node.module or "").partition(".")[0])
    assert imported - set(sys.stdlib_module_names) <= {"torch", "diffusers", "safetensors", "PIL", "typing_extensions"}
    defined = [node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert len(defined) == len(set(defined))


def test_the_text_is_the_package_s_own():
    """Word for word, but for what is imported."""
    from inspect import getsource

    import patch_diffusion as pd
    from patch_diffusion.denoise.process import VP
    from patch_diffusion.sampling.solvers import karras_sigmas

    network, scheduler = (
        bundle(f"patch_diffusion.interop.exported_code.{name}") for name in ("network_unet", "scheduler")
    )
    assert getsource(pd.UNet) in network
    for thing in (VP, karras_sigmas, *pd.SOLVERS.values()):
        assert getsource(thing) in scheduler


def test_it_runs_by_itself(tmp_path):
    (tmp_path / "alone.py").write_text(bundle("patch_diffusion.sampling.stochastic"))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import torch, alone\n"
        "noise = torch.ones(1, 1, 2, 2)\n"
        "levels = torch.tensor([5.0, 1.0, 0.0])\n"
        "found = alone.ancestral(lambda x, s: 0 * x, 5 * noise, levels, noise=lambda index: noise)\n"
        "assert found.abs().max() == 0 and not any(name.startswith('patch_diffusion') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-I", "-c", code, tmp_path], check=True)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """``write(name, text)``: a module of a package that stands in the place of this one."""
    monkeypatch.setattr("patch_diffusion.interop.bundle._PACKAGE", "stand_in")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stand_in").mkdir()
    (tmp_path / "stand_in" / "__init__.py").write_text("")

    def make(name, text):
        (tmp_path / "stand_in" / f"{name}.py").write_text(text)

    yield make
    for name in [name for name in sys.modules if name.startswith("stand_in")]:
        del sys.modules[name]


def test_order_names_and_annotations(write):
    write("low", "import math\n\n\ndef area(radius: 'Never') -> float:\n    return math.pi * radius**2\n")
    write(
        "high",
        "from typing import TYPE_CHECKING\n\nfrom stand_in.low import area\n\nif TYPE_CHECKING:\n    import nothing\n",
    )
    write(
        "top",
        '"""Top."""\n\nfrom math import (\n    floor,\n    pi as circle,\n)\n\n'
        "from stand_in.high import area as surface\n"
        "from stand_in.low import area\n\nFOUND = floor(surface(1)), floor(circle), area(0)\n",
    )
    text = bundle("stand_in.top")
    assert "stand_in" not in text.split("\n\n", 1)[1] and "nothing" not in text
    names = {}
    exec(text, names)
    assert names["FOUND"] == (3, 3, 0.0)


@pytest.mark.parametrize(
    ("two", "top", "message"),
    [
        ("area = 2\n", "from stand_in.one import area\nfrom stand_in.two import other\n", "both define area"),
        ("", "from stand_in.two import volume\n", "stand_in.two does not define volume"),
        ("", "from stand_in.gone import volume\n", "there is no module stand_in.gone"),
    ],
)
def test_modules_that_do_not_go_together(write, two, top, message):
    write("one", "area = 1\n")
    write("two", two)
    write("top", top)
    with pytest.raises(ValueError, match=message):
        bundle("stand_in.top")
