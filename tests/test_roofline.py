"""Does the roofline model add up?"""

import json
from dataclasses import replace

import pytest
import torch

from patch_diffusion.doctor.counting import CountedStep, count_steps
from patch_diffusion.doctor.kernels import Kernel, KernelCounter
from patch_diffusion.doctor.machines import MACHINES, Machine
from patch_diffusion.doctor.roofline import predict
from patch_diffusion.patches.schedule import PatchSize

SLOW = Machine(
    "slow", fp32=100.0, tf32=100.0, half=400.0, bandwidth=10.0, launch=0.5, host=0.25, reached=0.5, moved=0.5
)


def counted(*kernels):
    counter = KernelCounter()
    for operations, moved, number_format in kernels:
        counter.found[Kernel("forward", "mm", "product", 1, 1, moved, 0, operations, (1, 1, 1, 1), number_format)] += 1
    return counter


def test_a_kernel_takes_its_bytes_or_its_operations_whichever_are_longer():
    by_memory, by_operations, half = (50, 10, "float32"), (500, 10, "float32"), (500, 10, "bfloat16")
    assert predict(counted(by_memory), SLOW).seconds == 2.0 + 0.5  # 10 bytes at 5 a second
    assert predict(counted(by_operations), SLOW).seconds == 10.0 + 0.5  # 500 operations at 50 a second
    assert predict(counted(half), SLOW).seconds == 2.5 + 0.5
    found = predict(counted(by_memory, by_operations), SLOW)
    assert (found.memory, found.arithmetic, found.launch, found.seconds) == (2.0, 10.0, 1.0, 13.0)
    assert found.bound == "arithmetic"
    assert found.utilisation == pytest.approx(550 / 100 / 13)


def test_a_step_is_no_faster_than_the_host_launches_its_kernels():
    counter = KernelCounter()
    counter.found[Kernel("forward", "add", "pointwise", 1, 1, 0, 0, 0)] = 1000
    quick = Machine("quick", 1e15, 1e15, 1e15, 1e15, launch=1e-6, host=5e-6)
    assert predict(counter, quick).seconds == pytest.approx(5e-3)
    assert predict(counter, quick).bound == "launches"
    assert predict(KernelCounter(), quick).seconds == 0


@pytest.mark.parametrize("name", MACHINES)
def test_the_table_of_machines_is_in_the_right_units(name):
    machine = MACHINES[name]
    assert 1e12 < machine.fp32 <= machine.tf32 <= machine.half < 1e16
    assert 5e10 < machine.bandwidth < 1e13
    assert 8e9 <= machine.memory < 1e12
    assert machine.peak("float16") == machine.peak("bfloat16") == machine.half


@pytest.fixture
def on_path(monkeypatch):
    monkeypatch.syspath_prepend("benchmarks")


def test_a_curve_passes_its_points_and_ends_level(on_path):
    from processor import Curve, Processor, Product

    curve = Curve(((1.0, 10.0), (100.0, 1000.0)))
    assert [curve.at(size) for size in (0.1, 1, 10, 100, 1e9)] == pytest.approx([10, 10, 100, 1000, 1000])
    rates = {1: Curve(((8.0, 100.0),))}
    moves = {"mul": {1: Curve(((100.0, 50.0), (1000.0, 50.0)))}, "list": {1: Curve(((10.0, 5.0),))}}
    made = Processor({"product": Product(1.0, rates)}, moves)
    assert made.seconds(Kernel("", "mm", "product", 1, 1, 8, 8, 300, (1, 8, 8, 8))) == pytest.approx(1 + 3)
    assert made.seconds(Kernel("", "add", "pointwise", 1, 1, 400, 100, 0)) == pytest.approx(10)
    assert made.seconds(Kernel("", "add", "pointwise", 1, 1, 1, 0, 0)) == pytest.approx(2)  # the smallest measured
    assert made.seconds(Kernel("", "_foreach_add_", "list", 1, 3, 60, 30, 0)) == pytest.approx(3 * 30 / 5)


def test_a_prediction_for_a_gpu_fits_a_page(on_path, monkeypatch, capsys):
    import roofline

    size = PatchSize((64, 64), 1.0, 1.0, 1.0)
    step = CountedStep(size, 4096, counted(*[(10**11, 10**9, "bfloat16")] * 9999))
    monkeypatch.setattr(roofline, "count_steps", lambda *_: [step])
    monkeypatch.setattr(roofline, "count_evaluation", lambda *_: step.kernels)
    monkeypatch.setattr("sys.argv", ["roofline.py", "--gpu", "all", "--presets", "ncsnpp-small"])
    roofline.main()
    lines = capsys.readouterr().out.splitlines()
    assert "Predicted" in lines[0]
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if line.startswith("ncsnpp-small ")]
    assert len(rows) == 2 * len(MACHINES)
    assert rows[0].endswith(" memory")


def test_choices_for_gpus_are_predicted_and_grow_with_the_machine(on_path, monkeypatch, capsys, tmp_path):
    import choices

    def steps(counts, config, threads=1):
        """Return a step of one patch size and 1,000 launches."""
        size = PatchSize((64, 64), 1.0, 1.0, 1.0)
        kernels = [(7500 * counts.model(config).parameters * config.batch, 10**6, "bfloat16")] + 999 * [
            (0, 0, "float32")
        ]
        return [CountedStep(size, config.batch, counted(*kernels))]

    monkeypatch.setattr(choices.Counts, "steps", steps)
    monkeypatch.setattr(choices.Counts, "activations", lambda *_: 5 * 10**8)
    out = tmp_path / "choices.json"
    asked = ["--machines", "t4", "h200", "--hours", "0.1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["choices.py", *asked])
    choices.main()
    lines = capsys.readouterr().out.splitlines()
    assert "predicted" in lines[0] and max(map(len, lines)) <= 80
    rows = json.loads(out.read_text())["rows"]
    assert [row["machine"] for row in rows] == ["t4", "h200"] and rows[0]["parameters"] < rows[1]["parameters"]
    assert [row["parts"] for row in rows] == [2, 1]  # images take 500 MB each
    for row in rows:
        assert 0 < row["utilisation"] < 0.7 and 1 <= len(row["timed"]) <= 3
        assert row["step_seconds"] * row["images"] == pytest.approx(360 * row["batch"])
        assert row["parts"] == -(-row["batch"] // row["at_a_time"])
        assert row["reasons"][0].startswith(f"network.width {row['width']} with")


def test_the_measurement_of_a_processor_gives_every_kernel_a_time(on_path, monkeypatch):
    import processor
    import roofline

    monkeypatch.setattr(processor, "ROUNDS", 1)
    monkeypatch.setattr(processor, "CHANNELS", (8,))
    monkeypatch.setattr(processor, "SIDES", (4, 8))
    monkeypatch.setattr(processor, "BYTES", (2**12, 2**14))
    figures = processor.measure(1, split=True)
    config = roofline.config_of("dit-small", 4, 4, "fp32")
    network, patches = replace(config.network, depth=1), replace(config.patches, whole=1.0)
    (step,) = count_steps(replace(config, network=network, patches=patches), (8, 8))
    ways = dict.fromkeys(("alone", "shared", "split"), figures)
    seconds = roofline.seconds_predicted(step, ways, threads=2, shared=False)
    assert all(each > 0 for each in seconds.values())
    assert roofline.seconds_predicted(step, ways, threads=2, shared=True)["adding"] > 0
    assert torch.get_num_threads() == 1
