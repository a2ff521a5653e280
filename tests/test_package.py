"""The wheel and the sdist: what is in them, and what a type checker finds in a program that uses the wheel."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

import patch_diffusion as pd

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]

PROGRAM = """\
import patch_diffusion as pd
from patch_diffusion.config import Config

images = pd.open_images("digits")
pixels, labels = images.pixels.float().mean(), images.labels
several: pd.ImageSet | pd.ImageBuckets = pd.open_images("photos", resolution=64, fit="bucket")
network = pd.UNet(images.channels, width=8, num_classes=images.num_classes)
denoiser = pd.Denoiser(network, sigma_data=images.standard_deviation, process=pd.VP())
schedule = pd.PatchSchedule(sizes={"1/2": 0.5, "32": 0.5}, whole=0.5)
trainer = pd.Trainer(denoiser, images, schedule, out="run", batch=8, optimizer=pd.Config().optimizer)
model = trainer.fit(minutes=5)
model = pd.train(pd.PRESETS["digits"], out="run")
model = pd.load("run", checkpoint="best")
for sample in pd.generate(model, range(4), pd.Sampling(solver="heun"), labels=3):
    sample.image.save(f"{sample.seed}.png")
steps: int = trainer.state.counters.step
width: object = network.settings["width"]

pd.PatchSchedule(whole="half")  # wrong
pd.generate(model, seeds=3.5)  # wrong
pd.train(pd.PRESETS["digits"], ot="run")  # wrong
pd.Trainer(denoiser, images, schedule, out="run", bacth=8)  # wrong
pd.UNet(3, width="8")  # wrong
pd.open_images("digits", fit="bukcet")  # wrong
pd.open_images("digits", resolution="64")  # wrong
several.pixels  # wrong
pd.Trianer  # wrong
trainer.fit(minutes="5")  # wrong
schedule.whole_  # wrong
for sample in pd.generate(model, range(4)):
    sample.sed  # wrong
Config(batch=3.5)  # wrong
"""


def build(target: str, checkout: Path, folder: Path) -> Path:
    """Build with what is installed, without a network."""
    pytest.importorskip("hatchling", reason="hatchling, of the extra test, is not installed")
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    subprocess.run(command, cwd=checkout, check=True, capture_output=True)
    (built,) = folder.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the sdist makes, so that it shows if the sdist lacks something."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (checkout,) = (folder / "unpacked").iterdir()
    return build("wheel", checkout, folder / "built")


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel, which sees the libraries of this one but not its checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=os.name != "nt")
    scheme = sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(scheme)
    (Path(scheme) / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return next(folder.glob("[bS]*/python*"))


def check_types(environment: Path, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run pyright as its user does, outside the checkout."""
    pytest.importorskip("pyright", reason="pyright, of the extra lint, is not installed")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    clean["PATH"] = f"{environment.parent}{os.pathsep}{clean['PATH']}"
    command = [sys.executable, "-m", "pyright", "--outputjson", *arguments]
    return json.loads(subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True).stdout)


def test_what_is_in_the_sdist(sdist):
    with tarfile.open(sdist) as archive:
        top, files = f"patch_diffusion-{pd.__version__}/", [each for each in archive if each.isfile()]
    names = {each.name.removeprefix(top) for each in files}
    if (ROOT / ".git").exists():
        done = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
        tracked = {name for name in done.stdout.splitlines() if (ROOT / name).exists()}
        assert tracked - names == set()
        assert {name.split("/")[0] for name in names} - {name.split("/")[0] for name in tracked} == {"PKG-INFO"}
    assert {"LICENSE", "NOTICE", "README.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "constraints.txt"} <= names
    assert {"docs/data.md", "docs/site/pages.py", "tests/conftest.py", "benchmarks/measuring.py"} <= names
    assert not [name for name in names if {"__pycache__", ".venv", "build", "dist"} & set(name.split("/"))]
    large = {each.name.removeprefix(top) for each in files if each.size >= 100_000}
    assert large <= {"docs/emoji.png", "LOG.md"}, "a result, a run or a data set has slipped in"


def test_what_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"patch_diffusion-{pd.__version__}.dist-info/METADATA").decode()
    package = ROOT / "src" / "patch_diffusion"
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    there = {path.relative_to(package.parent).as_posix() for path in files}
    assert {name for name in names if ".dist-info/" not in name} == there
    assert {"patch_diffusion/py.typed", "patch_diffusion/presets.py", "patch_diffusion/web/static/index.html"} <= there
    assert {name.split("/", 1)[1] for name in names - there} >= {
        "licenses/LICENSE",
        "licenses/NOTICE",
        "entry_points.txt",
    }
    assert f"\nVersion: {pd.__version__}\n" in metadata and "\nLicense-Expression: Apache-2.0\n" in metadata


def test_a_type_checker_finds_a_user_s_mistakes(environment, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    found = check_types(environment, tmp_path, "--pythonpath", str(environment), "program.py")
    lines = {each["range"]["start"]["line"] for each in found["generalDiagnostics"] if each["severity"] == "error"}
    assert lines == {number for number, line in enumerate(PROGRAM.splitlines()) if line.endswith("# wrong")}, found


def test_every_public_name_has_a_type(environment, tmp_path):
    """All that a user can import, not only what is in ``__all__``."""
    found = check_types(environment, tmp_path, "--verifytypes", "patch_diffusion", "--ignoreexternal")
    types = found["typeCompleteness"]
    assert Path(types["packageRootDirectory"]).is_relative_to(environment.parents[1])  # not the checkout
    unknown = [each["name"] for each in types["symbols"] if each["isExported"] and not each["isTypeKnown"]]
    unclear = [each["name"] for each in types["symbols"] if each["isExported"] and each["isTypeAmbiguous"]]
    assert (unknown, unclear, types["completenessScore"]) == ([], [], 1)
