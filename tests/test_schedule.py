from collections import Counter

import pytest
from hypothesis import given, strategies as st

import patch_diffusion as pd


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
