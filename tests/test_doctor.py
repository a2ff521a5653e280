"""The doctor: trials in processes of their own, checks at their smallest, and what it says of them."""

import getpass
import json
import math
import os
import platform
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.cli import main
from patch_diffusion.config import Network
from patch_diffusion.doctor import checks, diagnose, equality, machine, speed, trials
from patch_diffusion.doctor.apart import AbsentError, FailedError, Outcome, answer, apart
from patch_diffusion.doctor.checks import CHECKS
from patch_diffusion.doctor.diagnose import Plan, carry_out
from patch_diffusion.doctor.page import doctor_page
from patch_diffusion.doctor.private import scrubbed
from patch_diffusion.doctor.report import Comparison, Diagnosis, Speed, rate, ratios, size
from patch_diffusion.patches.schedule import PatchSize
from patch_diffusion.sampling.stochastic import SOLVERS
from test_report import Page

SECRET = "hunter2-of-anna"


@pytest.fixture
def secrets(monkeypatch):
    """Everything that must not be in a report."""
    monkeypatch.setenv("A_TOKEN", SECRET)
    monkeypatch.setattr(platform, "node", lambda: "annas-machine.example.org")
    monkeypatch.setattr(getpass, "getuser", lambda: "annauser")
    places = [Path.home(), Path.cwd(), Path(tempfile.gettempdir()), Path(pd.__file__).parent]
    return [SECRET, "annas-machine", "annauser", *(str(place) for place in places if len(str(place)) > 1)]


@pytest.fixture
def tiny(monkeypatch):
    """The smallest network and batch, in place of those of the checks."""
    network = Network(width=8, multipliers=(1,), blocks=1, attention=(), dropout=0.0)
    smallest = replace(trials.DIGITS, network=network, batch=4, optimizer=pd.PRESETS["digits"].optimizer)
    for module in (checks, equality, trials, diagnose):
        monkeypatch.setattr(module, "DIGITS", smallest)
    return smallest


# Trials in processes of their own


def test_a_function_returns_from_another_process():
    done = apart(math.gcd, 12, 18, within=60)
    assert (done.value, done.reason, done.absent) == (6, "", False) and done.seconds > 0
    assert apart(os.getpid, within=60).value != os.getpid()


def test_one_that_raises_is_one_line_and_names_nothing_private(secrets):
    done = apart(int, SECRET, within=60)
    assert done.value is None and done.reason == "ValueError: invalid literal for int() with base 10: '...'"
    done = apart(os.listdir, str(Path.home() / "missing photos" / "1.png"), within=60)
    assert "No such file" in done.reason and not any(word in done.reason for word in secrets)
    assert "not JSON compliant" in apart(float, "nan", within=60).reason


def test_one_that_crashes_or_hangs_is_ended():
    assert apart(os.abort, within=60).reason == "its process crashed (SIGABRT)"
    began = time.monotonic()
    done = apart(time.sleep, 60, within=0.5)
    assert done.late and done.reason == "it took more than 0 s, and was ended"
    assert time.monotonic() - began < 30
    assert apart(os._exit, 3, within=60).reason == "its process ended with status 3"


def test_one_that_misses_something_is_no_failure(tmp_path, monkeypatch):
    """In this process, as torch takes long to import."""
    monkeypatch.setattr(checks, "has_compiler", lambda: False)
    monkeypatch.setattr(checks, "choose_device", lambda: torch.device("cpu"))
    for arguments, absent in (([], True), ([1], False)):
        asked = {"call": [checks.__name__, "compiles"], "arguments": arguments, "options": {}}
        (tmp_path / "asked.json").write_text(json.dumps(asked))
        answer(str(tmp_path))
        assert json.loads((tmp_path / "answer.json").read_text()).get("absent", False) == absent


def test_no_file_of_a_trial_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert str(tmp_path) in apart(tempfile.mkdtemp, within=60).value
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12 images/s, n/a, 3 and/or 4", "12 images/s, n/a, 3 and/or 4"),
        ("cannot open '/home/anna/a b.png'", "cannot open '... b.png'"),
        (r"in C:\Users\anna\x.py: error", "in ... error"),
        ("see ~/photos (and /tmp/x)", "see ... (and ...)"),
        ("annauser@annas-machine says", "...@... says"),
    ],
)
def test_private_text_is_hidden(secrets, text, expected):
    assert scrubbed(text) == expected


# Facts


def test_a_machine_has_facts_and_no_names(secrets):
    found = machine.machine()
    assert found["processor"]["threads"] == torch.get_num_threads() and found["versions"]["torch"] == torch.__version__
    assert found["gpus"] or found["device"] in ("cpu", "mps")
    assert not any(word in json.dumps(found) for word in secrets)


def test_gpus_and_their_drivers(monkeypatch):
    facts = SimpleNamespace(name="Abacus", total_memory=2**34, major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: facts)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda place=None: (2**33, 2**34))
    monkeypatch.setattr(machine, "choose_device", lambda: torch.device("cuda"))
    found = machine.machine()
    assert found["gpus"][0] == {
        "name": "Abacus",
        "memory": 2**34,
        "free": 2**33,
        "capability": "9.0",
        "multiprocessors": 132,
    }
    text = Diagnosis("1", False, 1.0, found).text()
    assert "GPU 0      Abacus, 16.0 GB (8.0 GB free), capability 9.0" in text


def test_the_commit_of_an_installation_from_git(monkeypatch):
    origin = {"url": "https://example.org/x.git", "vcs_info": {"vcs": "git", "commit_id": "abc123"}}
    monkeypatch.setattr(machine, "circumstances", lambda device: {"commit": None})
    for text, expected in ((json.dumps(origin), "abc123"), ('{"url": "file:///home/anna"}', None), (None, None)):
        monkeypatch.setattr(
            machine, "distribution", lambda name, text=text: SimpleNamespace(read_text=lambda file: text)
        )
        assert machine.machine()["commit"] == expected


def test_a_container_may_have_fewer_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_QUOTA", tmp_path / "cpu.max")
    for text, expected in (("150000 100000\n", 1.5), ("max 100000\n", None)):
        (tmp_path / "cpu.max").write_text(text)
        assert machine.machine()["processor"]["quota"] == expected


# Checks, in this process


def test_training_lowers_the_loss_or_fails(tiny, monkeypatch):
    tiny = replace(tiny, optimizer=replace(tiny.optimizer, learning_rate=2e-2, warmup=0.0))
    monkeypatch.setattr(checks, "DIGITS", tiny)
    assert "in 40 steps" in checks.learns("fp32")
    still = replace(tiny, batch=16, optimizer=replace(tiny.optimizer, learning_rate=1e-9))
    monkeypatch.setattr(checks, "DIGITS", still)
    with pytest.raises(FailedError, match="does not learn: loss from"):
        checks.learns("bf16", steps=10)


def test_sampling_names_the_solvers_that_fail(tiny, monkeypatch):
    assert checks.samples(steps=3) == f"finite with all of {len(SOLVERS)} solvers"
    monkeypatch.setattr(checks, "SOLVERS", {"heun": None, "sieve": None})
    with pytest.raises(FailedError, match=r"^not with sieve \(InputError\)$"):
        checks.samples(steps=3)


def test_a_model_is_loaded_and_a_run_continues_as_it_was(tiny, monkeypatch):
    assert "same images" in checks.saves(steps=1)
    assert "bit for bit" in checks.resumes(steps=2)
    monkeypatch.setattr(checks, "load", lambda run: trials.objective_of(torch.device("cpu")).denoiser)
    with pytest.raises(FailedError, match="other images"):
        checks.saves(steps=1)
    monkeypatch.setattr(checks, "difference", lambda found, expected: 1e-9)
    with pytest.raises(FailedError, match="other weights"):
        checks.resumes(steps=2)


def test_other_pixels_and_optimizers(tiny, monkeypatch):
    assert "16 bits" in checks.deep_pixels(steps=2)
    assert "10 steps" in checks.optimizer_learns("muon")
    assert "leaves out" in checks.fused_optimizer()
    monkeypatch.setattr(checks, "difference", lambda found, expected: 0.1)
    with pytest.raises(FailedError, match=r"differ by 1.0e-01"):
        checks.fused_optimizer()


def test_compiling_needs_a_compiler_and_has_to_agree(tiny, monkeypatch):
    monkeypatch.setattr(checks, "has_compiler", lambda: False)
    with pytest.raises(AbsentError, match=r"no C\+\+ compiler"):
        checks.compiles()
    monkeypatch.setattr(checks, "has_compiler", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: None)
    assert "agrees with eager" in checks.compiles()

    def wrong(self, **_):
        next(self.parameters()).data.mul_(1.1)

    monkeypatch.setattr(torch.nn.Module, "compile", wrong)
    with pytest.raises(FailedError, match="compiled and eager differ"):
        checks.compiles()


@pytest.mark.scheduled
def test_two_processes_share_a_batch():
    assert "2 processes end with the weights of one" in apart(checks.shares_batches, 2, within=200).value


def test_checks_have_names_and_advice():
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(check.advice and check.advice[-1] != "." and len(check.advice) < 100 for check in CHECKS)


# Equal results


def test_two_ways_to_compute_agree(tiny, monkeypatch):
    assert equality.two_runs(steps=2) == {"weights": [0.0, 0.0]}
    found = equality.bf16_and_fp32()
    assert all(0 < difference <= most for difference, most in found.values()) and {*found} == {"losses", "gradients"}
    with pytest.raises(AbsentError, match="one thread"):
        equality.threads_and_one()
    torch.set_num_threads(2)
    try:
        found = equality.threads_and_one()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert all(difference <= most for difference, most in found.values()) and "samples" in found


def test_another_device_is_compared_with_the_cpu(monkeypatch):
    monkeypatch.setattr(equality, "choose_device", lambda: SimpleNamespace(type="cuda"))
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    seen = []

    def results(device):
        seen.append((device.type, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        factor = 1.1 if device.type == "cuda" else 1.0
        return {name: factor * torch.ones(3) for name in ("losses", "gradients", "samples")}

    monkeypatch.setattr(equality, "_results", results)
    found = equality.gpu_and_cpu()
    assert seen == [("cuda", "highest", False), ("cpu", "highest", False)]
    assert all(difference == pytest.approx(0.1, rel=1e-4) and difference > most for difference, most in found.values())
    assert equality.tf32_and_fp32()["losses"][0] == 0
    assert seen[2:] == [("cuda", "highest", False), ("cuda", "high", True)]
    assert before == (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)


# Speed


def test_each_size_counts_by_its_share(monkeypatch):
    """Whole images in a quarter of the steps take 4 s, patches 1 s; chance draws both alike."""
    whole, half = PatchSize((8, 8), 0.25, 1.0, 1.0), PatchSize((4, 4), 0.75, 2.0, 1.0)
    counters = SimpleNamespace(step=0)

    def train_step(spent):
        counters.step += 1
        return (whole, half)[counters.step % 2], None

    trainer = SimpleNamespace(
        schedule=SimpleNamespace(sizes_for=lambda resolution, stride: [whole, half]),
        images=SimpleNamespace(resolution=(8, 8)),
        state=SimpleNamespace(counters=counters, denoiser=SimpleNamespace(stride=1)),
        engine=SimpleNamespace(synchronize=lambda: None),
        batches=SimpleNamespace(batch=8),
        flops={(8, 8): 100, (4, 4): 10},
        train_step=train_step,
    )
    clock = [0.0]

    def mark(trainer):
        clock[0] += (4.0, 1.0)[counters.step % 2]
        return clock[0]

    monkeypatch.setattr(speed, "_mark", mark)
    found = speed.speed_of_steps(trainer, steps=4)
    each, images = 0.25 * 4 + 0.75 * 1, 0.25 * 8 + 0.75 * 16
    assert found["images_per_second"] == pytest.approx(images / each)
    assert found["steps_per_second"] == pytest.approx(1 / each)
    assert found["flops_per_second"] == pytest.approx((0.25 * 8 * 100 + 0.75 * 16 * 10) / each)
    assert counters.step == 5 + 4


def test_a_preset_is_measured(tiny, monkeypatch):
    monkeypatch.setattr(speed, "PRESETS", {"small": replace(tiny, data=pd.Config().data)})
    found = speed.measure("small", "fp32", side=16, batch=2, steps=1, whole=True)
    assert found["format"] == "float32" and found["batch"] == 2 and found["images_per_second"] > 0
    assert found["images_per_second"] == pytest.approx(2 * found["steps_per_second"])
    monkeypatch.setattr(speed, "_SIDES", (16, 32, 64, 128))
    monkeypatch.setattr(speed, "_COPIED", (64, 64))
    rates = speed.rates(["float32", "uint16"])
    assert {*rates["products"]} == {"float32"} and min(*rates["products"].values(), rates["bandwidth"]) > 0


def test_a_gpu_of_twice_the_speed_is_predicted_to_train_twice_as_fast(tiny, monkeypatch):
    monkeypatch.setattr(speed, "PRESETS", {"small": replace(tiny, data=pd.Config().data)})
    monkeypatch.setattr(speed, "Machine", partial(speed.Machine, launch=0.0, host=0.0))
    slow, fast = (
        speed.predicted_speeds([("small", True), ("small", False)], False, {"float32": 1e9 * by}, 1e9 * by, side=16)
        for by in (1, 2)
    )
    assert fast == pytest.approx([2 * each for each in slow]) and slow[1] > slow[0] > 0


# The plan


@pytest.fixture
def outcomes(monkeypatch):
    """What the trials of a plan end with on a CPU, by the function's name; the usual ones are sound."""
    monkeypatch.setattr(machine, "choose_device", lambda: torch.device("cpu"))
    found = {
        "rates": Outcome({"products": {"float32": 1e11, "bfloat16": 2e11}, "bandwidth": 1e10}),
        "measure": Outcome(
            {
                "images_per_second": 50.0,
                "steps_per_second": 2.0,
                "flops_per_second": 5e10,
                "seconds_of_first_steps": 1.5,
                "format": "float32",
                "batch": 8,
                "peak_bytes": 2**28,
            }
        ),
        "short_race": Outcome(
            {"losses": {"whole": [0.9, 0.5], "patches": [0.8, 0.4]}, "images_per_second": {"whole": 99, "patches": 150}}
        ),
    }

    def stub(function, *arguments, within, **options):
        name = function.__name__
        usual = {"losses": [1e-5, 1e-4]} if function.__module__ == equality.__name__ else "works"
        return found.get(f"{name} {arguments[0]}" if arguments else name, found.get(name, Outcome(usual, seconds=1.0)))

    monkeypatch.setattr(diagnose, "apart", stub)
    return found


def test_all_that_works(outcomes, secrets):
    lines = []
    found = carry_out(Plan(), lines.append)
    assert found.failed == [] and found.left_out == [] and len(found.checks) == len(CHECKS)
    assert {row.preset for row in found.speeds} >= set(speed.ON_CPU) and found.speeds[0].utilisation == 0.5
    assert [row.name for row in found.speeds if row.way == "compiled"] == ["small, whole, compiled"]
    assert {(row.preset, row.images) for row in found.speeds} == {
        (preset, images) for preset in speed.ON_CPU for images in ("patches", "whole")
    }
    told = " ".join(found.text().split())
    assert "it is for CUDA GPUs" in told and "whole 0.900 to 0.500 at 99 images/s" in told
    gpus = {"training in fp16", "TF32", "pinned copies", "NCCL"}
    assert {check.name for check in found.checks if check.state == "not here"} == gpus
    assert len(lines) == len(found.checks) - len(gpus) + len(found.comparisons) + len(found.speeds) + 2
    text = json.dumps(found.as_dict(), allow_nan=False) + found.text() + doctor_page(found)
    assert not any(word in text for word in secrets)
    assert all(len(line) <= 80 for line in found.text().splitlines()), found.text()
    assert found.text().endswith("\nEverything that was tried works.")


def test_on_a_gpu_more_presets_are_measured_and_compiled(outcomes, monkeypatch):
    here = {**machine.machine(), "device": "cuda", "gpus": [{"name": "Abacus", "memory": 2**34}]}
    monkeypatch.setattr(diagnose, "machine", lambda: here)
    outcomes["predicted_speeds"] = Outcome([100.0, 101.0])
    found = carry_out(Plan(), lambda text: None)
    names = [row.name for row in found.speeds]
    assert [row.predicted for row in found.speeds[:3]] == [100.0, 101.0, None]
    assert "predicted" in found.text() and all(len(line) <= 80 for line in found.text().splitlines())
    assert names[:3] == ["small, patches, eager", "small, whole, eager", "small, patches, compiled"]
    assert {row.preset for row in found.speeds if row.way == "compiled"} == {*speed.ON_GPU}
    assert all(check.state == "ok" for check in found.checks) and "GPU and CPU, fp32" in found.text()


def test_what_fails_is_named_with_what_to_do(outcomes):
    outcomes["learns bf16"] = Outcome(reason="<b>no</b> bf16", seconds=2.0)
    outcomes["samples"] = Outcome(reason="no solvers", absent=True)
    outcomes["compiles"] = Outcome(reason="its process crashed (SIGSEGV)")
    outcomes["two_runs"] = Outcome({"weights": [0.5, 0.0]})
    outcomes["threads_and_one"] = Outcome(reason="one thread", absent=True)
    outcomes["bf16_and_fp32"] = Outcome(reason="it hangs")
    outcomes["measure adm-small"] = Outcome(reason="out of memory")
    outcomes["short_race"] = Outcome(reason="it took more than 9 s, and was ended")
    found = carry_out(Plan(), lambda text: None)
    states = {check.name: check.state for check in found.checks}
    assert (states["training in bf16"], states["sampling"], states["compile"]) == ("failed", "not here", "failed")
    assert [check.advice != "" for check in found.checks] == [check.state == "failed" for check in found.checks]
    assert found.failed[:4] == ["training in bf16", "compile", "bf16 and fp32", "two runs of one seed"]
    assert "adm-small, patches, eager" in found.failed and found.failed[-1] == "race"
    assert not any(row.way == "compiled" for row in found.speeds)  # since compiling fails
    text, html = found.text(), doctor_page(found)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "failed     training in bf16: <b>no</b> bf16 (2 s)\n           To do: train with" in text
    assert "&lt;b&gt;no&lt;/b&gt; bf16" in html and "<b>no</b>" not in html and "SIGSEGV" in html
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["checks"][1]["state"] == "failed"


def test_what_does_not_fit_is_left_out(outcomes):
    found = carry_out(Plan(checks=0.0, comparisons=0.0, speeds=0.0, race=0.0), lambda text: None)
    assert found.speeds == [] and found.race is None and found.failed == []
    assert {check.state for check in found.checks} == {"not here"}
    assert found.left_out == [*(each.name for each in (*CHECKS, *equality.PAIRS) if "cpu" in each.devices), "speed"]
    assert "Left out, as the time was over: training in fp32; " in found.text() and "Left out" in doctor_page(found)
    found = carry_out(Plan(whole=0.0), lambda text: None)
    assert found.left_out[-1] == "race"


def test_what_the_end_of_the_plan_cuts_off_is_left_out_and_has_not_failed(outcomes):
    """The first check begins in time, and would have had longer than there is left."""
    outcomes["learns fp32"] = Outcome(reason="it took more than 9 s, and was ended", late=True)
    found = carry_out(Plan(whole=10.0, race=0.0), lambda text: None)
    assert found.left_out == ["training in fp32"] and found.failed == []
    found = carry_out(Plan(whole=1000.0, race=0.0), lambda text: None)
    assert found.left_out == [] and found.failed == ["training in fp32"]


def test_a_quick_look_is_short(outcomes):
    found = carry_out(diagnose.QUICK, lambda text: None)
    assert len(found.checks) == sum(check.quick for check in CHECKS) < len(CHECKS)
    assert [row.name for row in found.speeds] == ["small, patches, eager", "small, whole, eager"]
    assert found.left_out == [] and found.race is None and "A quick look" in doctor_page(found)


def test_no_launcher_may_have_started_it(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(pd.InputError, match="without torchrun"):
        pd.diagnose()


# What it says


def test_ratios_and_units():
    rows = [
        Speed("small", images, way, images_per_second=speed, flops_per_image=flops)
        for images, way, speed, flops in (
            *(("patches", "eager", 30.0, 2.0), ("whole", "eager", 10.0, 8.0), ("patches", "compiled", 45.0, 2.0)),
        )
    ]
    assert list(ratios([*rows, Speed("dit-small", "patches", "eager", told="crashed")])) == [
        "small, eager: patches train on 3.00 times the images a second of whole images, with 4.00 times fewer "
        "operations an image.",
        "small, patches: compiled, it trains on 1.50 times the images a second of eager.",
    ]
    assert [rate(each) for each in (5e5, 1.23e11, 9.9e14)] == ["0.5 MFLOP/s", "123 GFLOP/s", "990 TFLOP/s"]
    assert [size(each) for each in (None, 2**21, 3 * 2**30)] == ["unknown memory", "2 MB", "3.0 GB"]


def test_a_difference_that_is_no_number_is_not_within_its_tolerance():
    assert not Comparison("a", "losses", None, 1.0).is_ok and not Comparison("a", "losses", 2.0, 1.0).is_ok
    assert Comparison("a", "weights", 0.0, 0.0).is_ok


@pytest.fixture
def command(outcomes, capsys):
    """``command("--json")``: exit status, stdout and stderr."""

    def call(line):
        status = main(["doctor", *line.split()])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_the_command(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = command("")
    assert status == 0 and "Everything that was tried works." in out and list(tmp_path.iterdir()) == []
    assert err.count("patch-diffusion doctor --json doctor.json --out doctor.html") == 2 and "compile: ok" in err
    status, out, err = command("--quick --json doctor.json --out new/doctor.html")
    assert status == 0 and "What works" in out and "--out doctor.html" not in err and "about a minute" in err
    found = json.loads((tmp_path / "doctor.json").read_text())
    assert found["doctor"] == 1 and found["quick"] and found["failed"] == []
    page = Page(tmp_path / "new/doctor.html")
    assert all(
        part in page.text for part in ("Machine", "What works", "Equal results", "Speed of training", "A quick look")
    )
    assert not any("src" in attributes or "href" in attributes for _, attributes in page.tags)
    status, out, err = command("--json")
    assert json.loads(out)["checks"] and "the page" not in err


def test_a_page_that_cannot_be_written_is_refused_before_the_work(command, tmp_path, monkeypatch):
    monkeypatch.setattr(pd, "diagnose", None)
    status, _, err = command(f"--out {tmp_path}")
    assert status == 1 and "is a folder" in err
    status, _, err = command(f"--json {tmp_path}/a.json --out {tmp_path}/a.json")
    assert status == 1 and "choose another place" in err


def test_an_interrupt_ends_it(command, monkeypatch):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pd, "diagnose", interrupted)
    assert command("")[::2] == (
        130,
        "this takes about six minutes; to keep the results, or to send them: "
        "patch-diffusion doctor --json doctor.json --out doctor.html\n"
        "patch-diffusion doctor: interrupted; nothing was written\n",
    )


@pytest.mark.scheduled
def test_the_whole_with_a_tiny_budget(tmp_path, monkeypatch, capsys, secrets):
    """One trial of each part, in processes of their own."""

    def smaller(function, *arguments, **options):
        least = {"side": 16, "batch": 1} if function is speed.measure else {}
        return apart(function, *arguments, **options, **least)

    monkeypatch.setattr(diagnose, "CHECKS", [check for check in CHECKS if check.name in ("fused optimizer", "NCCL")])
    monkeypatch.setattr(diagnose, "apart", smaller)
    monkeypatch.setattr(diagnose, "_ways", lambda presets, compiles, quick: [Speed("digits", "whole", "eager")])
    monkeypatch.setattr(diagnose, "FULL", Plan(comparisons=0.0, timed=0.1, race=0.002, whole=300.0))
    files = [tmp_path / "doctor.json", tmp_path / "doctor.html"]
    assert main(["doctor", "--json", str(files[0]), "--out", str(files[1])]) == 0
    found = json.loads(files[0].read_text())
    assert found["failed"] == [] and "ok" in {check["state"] for check in found["checks"]}
    assert found["products"]["float32"] > 0 and found["left_out"]
    assert [speed["images_per_second"] > 0 for speed in found["speeds"]] == [True]
    assert {*found["race"]["losses"]} == {"whole", "patches"}
    assert not any(word in file.read_text() for word in secrets for file in files)
