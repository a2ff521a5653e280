import json
import math
from collections import Counter

import pytest
from hypothesis import given, strategies as st

import patch_diffusion as pd
from patch_diffusion.config_dict import from_dict, to_dict
from patch_diffusion.streams import uniform


def sizes(schedule, resolution=(64, 64), stride=1):
    return {str(size): size for size in schedule.sizes_for(resolution, stride)}


@given(st.floats(0, 1), st.integers(8, 200), st.integers(8, 200))
def test_probabilities_are_those_of_the_paper(whole, height, width):
    found = pd.PatchSchedule(whole=whole).sizes_for((height, width))
    by_shape = {size.shape: size.probability for size in found}
    assert sum(by_shape.values()) == pytest.approx(1)
    assert by_shape.get((height, width), 0) == pytest.approx(whole)
    assert by_shape.get((height // 2, width // 2), 0) == pytest.approx(0.6 * (1 - whole))
    assert by_shape.get((height // 4, width // 4), 0) == pytest.approx(0.4 * (1 - whole))


def test_frequencies_of_a_stochastic_schedule():
    schedule = pd.PatchSchedule(whole=0.5, seed=3)
    counts = Counter(str(schedule.size_at(step, (64, 64))) for step in range(20_000))
    for size, share in {"64x64": 0.5, "32x32": 0.3, "16x16": 0.2}.items():
        assert abs(counts[size] / 20_000 - share) < 0.015


def test_a_step_has_its_size_whenever_it_is_asked():
    first = [pd.PatchSchedule(seed=1).size_at(step, (64, 64)) for step in range(50)]
    again = [pd.PatchSchedule(seed=1).size_at(step, (64, 64)) for step in reversed(range(50))]
    other = [pd.PatchSchedule(seed=2).size_at(step, (64, 64)) for step in range(50)]
    assert first == again[::-1]
    assert first != other


def test_progressive_goes_from_small_to_large_in_the_same_proportions():
    schedule = pd.PatchSchedule(whole=0.5, kind="progressive")
    found = [str(schedule.size_at(0, (64, 64), spent / 1000)) for spent in range(1000)]
    assert found == ["16x16"] * 200 + ["32x32"] * 300 + ["64x64"] * 500
    assert str(schedule.size_at(0, (64, 64), 1.0)) == "64x64"


def test_whole_images_alone():
    assert list(sizes(pd.PatchSchedule(whole=1))) == ["64x64"]
    assert list(sizes(pd.PatchSchedule(whole=1))) == ["64x64"]


def test_no_whole_images():
    assert list(sizes(pd.PatchSchedule(whole=0, sizes={"1/2": 1}))) == ["32x32"]


def test_sizes_in_pixels_keep_the_aspect():
    assert list(sizes(pd.PatchSchedule(sizes={"24": 1.0}), (48, 96))) == ["24x48", "48x96"]
    assert list(sizes(pd.PatchSchedule(sizes={24: 1.0}), (96, 48))) == ["48x24", "96x48"]


def test_two_names_of_one_size_share():
    found = sizes(pd.PatchSchedule(whole=0, sizes={"1/2": 0.5, "32": 0.5}))
    assert found["32x32"].probability == pytest.approx(1)


@pytest.mark.parametrize(
    ("growth", "batches"), [("linear", (64, 32, 16)), ("area", (256, 64, 16)), ("none", (16, 16, 16))]
)
def test_growth_of_the_batch(growth, batches):
    found = pd.PatchSchedule(growth=growth).sizes_for((64, 64))
    assert tuple(size.num_images(16) for size in found) == batches


def test_area_weights_are_the_reference_s_shares_of_the_objective():
    """The published loss is a sum: 85, 13 and 2 % of it come from whole, half and quarter."""
    found = pd.PatchSchedule(whole=0.5, weight="area").sizes_for((64, 64))
    total = sum(size.weight * size.probability for size in found)
    assert [round(size.weight * size.probability / total, 2) for size in found] == [0.02, 0.13, 0.85]
    assert {size.weight for size in pd.PatchSchedule().sizes_for((64, 64))} == {1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"whole": 1.2}, "patches.whole is a probability between 0 and 1, not 1.2"),
        ({"whole": -0.1}, "between 0 and 1"),
        ({"whole": float("nan")}, "between 0 and 1"),
        ({"sizes": {"1/2": 0.5}}, "add up to 0.5.* 1/2: 1"),
        ({"sizes": {}}, "add up to 0"),
        ({"sizes": {"1/2": 1.5, "1/4": -0.5}}, "lies between 0 and 1"),
        ({"sizes": {"half": 1.0}}, "'half' is neither a fraction"),
        ({"sizes": {"3/2": 1.0}}, "'3/2' is neither a fraction"),
        ({"sizes": {"0": 1.0}}, "'0' is neither a fraction"),
        ({"sizes": {"1/0": 1.0}}, "'1/0' is neither a fraction"),
        ({"kind": "stochastik"}, "did you mean 'stochastic'"),
        ({"growth": "cubic"}, "linear, area, none"),
        ({"weight": "pixel"}, "patch, area"),
    ],
)
def test_what_makes_no_schedule_is_refused(options, message):
    with pytest.raises(pd.InputError, match=message):
        pd.PatchSchedule(**options)


@pytest.mark.parametrize(
    ("options", "resolution", "message"),
    [
        (
            {},
            (28, 28),
            "patches of 14x14 cannot pass .* halves them 2 times .* sizes that fit are 4, 8, 12, 16, 20, 24",
        ),
        ({}, (30, 30), "images of 30x30 cannot pass .* set data.resolution, for example to 28x28"),
        ({}, (3, 3), "images of 3x3 cannot pass"),
        ({"sizes": {"65": 1.0}}, (64, 64), "65 does not fit images of 64x64: take at most 64"),
        ({"sizes": {"1/100": 1.0}}, (64, 64), "less than one pixel"),
        ({"whole": 0}, (62, 64), "images of 62x64 cannot pass"),
    ],
)
def test_what_does_not_suit_image_or_network_is_refused(options, resolution, message):
    with pytest.raises(pd.InputError, match=message):
        pd.PatchSchedule(**options).sizes_for(resolution, stride=4)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 3))
def test_sizes_named_as_fitting_fit(height, width, halvings):
    stride = 2**halvings
    resolution = (height * stride, width * stride)
    with pytest.raises(pd.InputError, match="that fit are|no smaller patch fits") as refused:
        pd.PatchSchedule(whole=0, sizes={"1": 1.0}).sizes_for(resolution, stride)
    fitting = [
        str(side)
        for side in range(1, min(resolution))
        if side % stride == 0 and max(resolution) * side % (min(resolution) * stride) == 0
    ]
    named = str(refused.value).partition("that fit are ")[2].partition(" (")[0]
    assert named == ", ".join(fitting)
    for size in fitting:
        assert pd.PatchSchedule(whole=0, sizes={size: 1.0}).sizes_for(resolution, stride)


@st.composite
def plans(draw):
    """The options of a schedule, and the shape of an image or a volume that all of its sizes fit."""
    names = draw(st.lists(st.sampled_from(["1/2", "1/4", "2/3", "3/5", "5", "7", "8"]), min_size=1, unique=True))
    shares = [draw(st.integers(1, 9)) for _ in names]
    options = {
        "whole": draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])),
        "sizes": {name: share / sum(shares) for name, share in zip(names, shares, strict=True)},
        "kind": draw(st.sampled_from(["stochastic", "progressive"])),
        "growth": draw(st.sampled_from(["linear", "area", "none"])),
        "weight": draw(st.sampled_from(["patch", "area"])),
    }
    return options, tuple(draw(st.lists(st.integers(8, 99), min_size=2, max_size=3)))


@given(plans())
def test_the_sizes_of_any_schedule(plan):
    """Shares add up; from small to large; a step has about as many pixels whatever its size, and weights are shares."""
    options, resolution = plan
    found = pd.PatchSchedule(**options).sizes_for(resolution)
    areas = [math.prod(size.shape) / math.prod(resolution) for size in found]
    assert areas == sorted(areas) and all(0 < area <= 1 for area in areas)
    assert len({size.shape for size in found}) == len(found)
    assert sum(size.probability for size in found) == pytest.approx(1)
    for size, area in zip(found, areas, strict=True):
        assert all(0 < part <= side for part, side in zip(size.shape, resolution, strict=True))
        power = {"linear": 1 / len(resolution), "area": 1, "none": 0}[options["growth"]]
        assert size.growth == pytest.approx(area**-power)
        assert size.num_images(64) == max(1, round(64 * area**-power))
        assert size.weight == pytest.approx(area if options["weight"] == "area" else 1)


@given(plans(), st.integers(0, 2**63 - 1), st.integers(0, 10**9))
def test_a_step_s_size_is_a_function_of_seed_and_step(plan, seed, step):
    """And of what is spent alone, if it is progressive."""
    options, resolution = plan
    stochastic = pd.PatchSchedule(**{**options, "kind": "stochastic"}, seed=seed)
    square = stochastic.sizes_for((96, 96))
    place = uniform(seed, "patch size", step)
    size = stochastic.size_at(step, (96, 96), spent=0.3)
    below = [each.probability for each in square[: square.index(size)]]
    assert sum(below) - 1e-9 <= place <= sum([*below, size.probability]) + 1e-9
    assert stochastic.size_at(step, resolution) == stochastic.size_at(step, resolution, spent=0.7)
    progressive = pd.PatchSchedule(**{**options, "kind": "progressive"}, seed=seed)
    assert progressive.size_at(step, resolution, 0.4) == pd.PatchSchedule(**{**options, "kind": "progressive"}).size_at(
        0, resolution, 0.4
    )


@given(plans())
def test_a_progressive_schedule_grows_and_spends_its_shares(plan):
    options, resolution = plan
    schedule = pd.PatchSchedule(**{**options, "kind": "progressive"})
    taken = [schedule.size_at(0, resolution, (place + 0.5) / 400) for place in range(400)]
    areas = [math.prod(size.shape) for size in taken]
    assert areas == sorted(areas)
    counts = Counter(taken)
    for size in schedule.sizes_for(resolution):
        assert counts[size] / 400 == pytest.approx(size.probability, abs=1 / 400 + 1e-9)


@given(plans(), st.integers(0, 2**31))
def test_any_schedule_survives_its_config(plan, seed):
    options, resolution = plan
    schedule = pd.PatchSchedule(**options, seed=seed)
    stored = json.loads(json.dumps(to_dict(pd.Config(patches=schedule, seed=seed))))
    config = from_dict(stored)
    again = pd.PatchSchedule.of(config.patches, seed=config.seed)
    assert again == schedule and again.sizes_for(resolution) == schedule.sizes_for(resolution)
    assert [again.size_at(step, resolution) for step in range(9)] == [
        schedule.size_at(step, resolution) for step in range(9)
    ]
