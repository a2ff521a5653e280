from dataclasses import replace

import pytest

from patch_diffusion.config import Augment, Config, Data, Engine, Noise, Optimizer, Patches
from patch_diffusion.errors import InputError
from patch_diffusion.races.arms import check_arms, differences, whole_images

BASE = Config(steps=10)


def test_whole_images_are_the_ordinary_training():
    whole = whole_images(BASE)
    assert whole.patches.whole == 1 and not whole.patches.coords
    assert differences({"a": BASE, "b": whole}) == {
        "patches.whole": {"a": 0.5, "b": 1.0},
        "patches.coords": {"a": True, "b": False},
    }


@pytest.mark.parametrize(
    "other",
    [
        replace(BASE, optimizer=Optimizer(kind="adamw")),
        replace(BASE, batch=8),
        replace(BASE, engine=Engine(precision="bf16")),
        replace(BASE, data=Data(augment=Augment(flip=0.5))),
        replace(BASE, patches=Patches(whole=0.1)),
        replace(BASE, noise=Noise(p_mean=0.0)),
        replace(BASE, noise=Noise(weight="process")),
        replace(BASE, steps=5),
    ],
)
def test_what_may_differ(other):
    check_arms({"a": BASE, "b-2.x": other})


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"a": BASE}, "two arms or more, not 1"),
        ({"a": BASE, "../b": whole_images(BASE)}, "not '../b'"),
        ({"a": BASE, "": whole_images(BASE)}, "not ''"),
        ({"a": BASE, "A": whole_images(BASE)}, "differ in case alone"),
        ({"a": BASE, "b": whole_images(BASE), "c": BASE}, "arms 'a' and 'c' are the same"),
        ({"a": BASE, "b": replace(BASE, seed=3)}, "arm 'b' has seed 3 and arm 'a' 0"),
        (
            {"a": BASE, "b": replace(BASE, steps=None, minutes=3)},
            "arm 'b' has a budget of minutes and arm 'a' one of steps",
        ),
        ({"a": BASE, "b": replace(BASE, minutes=3)}, "arm 'b' has a budget of steps and minutes"),
        ({"a": BASE, "b": replace(BASE, data=Data(resolution=8))}, "data.resolution 8"),
        ({"a": BASE, "b": replace(BASE, noise=Noise(sigma_data=0.3))}, "noise.sigma_data 0.3"),
        ({"a": BASE, "b": replace(BASE, noise=Noise(levels=(0.1, 0.4)))}, "noise.levels [0.1, 0.4]"),
        ({"a": BASE, "b": replace(BASE, noise=Noise(process="vp"))}, "noise.process vp"),
        ({"a": BASE, "b": replace(BASE, engine=Engine(threads=4))}, "engine.threads 4"),
    ],
)
def test_what_cannot_be_compared(arms, message):
    with pytest.raises(InputError) as raised:
        check_arms(arms)
    assert message in str(raised.value)
