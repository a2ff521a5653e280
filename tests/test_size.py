from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.config import Config, Engine, Network, Patches
from patch_diffusion.runs.model import build_network
from patch_diffusion.training.choices import size as module
from patch_diffusion.training.choices.law import operations_worth, worth
from patch_diffusion.training.choices.size import Speed, choose_size, networks, smallest


def pictures(side=32, num=100, channels=3):
    random = torch.Generator().manual_seed(0)
    return pd.ImageSet(torch.randint(0, 256, (num, channels, side, side), dtype=torch.uint8, generator=random))


def speed(rate=5e10, overhead=0.02, activations=1e6, memory=None):
    return lambda config: Speed(overhead, rate, activations, memory)


def never(config):
    raise AssertionError("nothing is to be timed")


def parameters(config):
    with torch.device("meta"):
        network = build_network(config.network, 3, 0, coords=True)
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize("budget", [{"steps": 2000}, {"images": 100_000}])
def test_other_budgets_than_time_are_not_timed_and_always_choose_the_same(budget):
    one, two = (choose_size(pictures(), Config(**budget), (), never)[0] for _ in range(2))
    assert one == two and one.network.width and isinstance(one.batch, int)


def test_more_time_and_quicker_machines_take_larger_networks():
    def chosen(minutes, rate=5e10):
        return parameters(choose_size(pictures(), Config(minutes=minutes), (), speed(rate))[0])

    assert chosen(1) < chosen(30) < chosen(1000) < chosen(1000, rate=1e14)
    assert chosen(30) == chosen(15, rate=1e11)


def test_the_network_is_near_to_what_the_operations_are_worth():
    for minutes in (3, 60, 1000):
        config, (reason, *_) = choose_size(pictures(64), Config(minutes=minutes), ("patches.whole",), speed(1e11, 0.0))
        operations = 60 * minutes * 1e11
        assert 0.6 < parameters(config) / worth(operations, 64 * 64).parameters < 1.6
        assert f"about {operations:.1e} operations" in reason


def test_a_slow_host_takes_larger_batches():
    batches = [choose_size(pictures(), Config(minutes=30), (), speed(overhead=o))[0].batch for o in (0.001, 0.02, 1.0)]
    assert batches == sorted(batches) and batches[0] < batches[-1]


def test_what_is_given_stays():
    config = Config(network=Network(width=24, blocks=2), batch=5, minutes=10)
    assert choose_size(pictures(), config, (), never)[0].network == Network(
        width=24, blocks=2, multipliers=(1, 2, 4), attention=(2,), dropout=0.0
    )
    found = choose_size(pictures(), replace(config, network=Network(blocks=2)), (), speed())[0]
    assert found.network.blocks == 2 and found.network.width and found.batch == 5
    found = choose_size(pictures(), replace(config, network=Network(multipliers=(1, 2))), (), speed())[0]
    assert found.network.multipliers == (1, 2) and found.network.attention is None
    preset = pd.PRESETS["small"]
    assert choose_size(pictures(), preset, (), never) == (preset, [])
    custom = Config(network=Network(kind="custom"), steps=1)
    assert choose_size(pictures(), custom, (), never)[0].network == custom.network


def test_fewer_whole_images_of_large_ones():
    assert choose_size(pictures(64), Config(steps=9), (), never)[0].patches.whole == 0.25
    assert choose_size(pictures(64), Config(steps=9), ("patches.whole",), never)[0].patches.whole == 0.5
    assert choose_size(pictures(64), Config(patches=Patches(whole=1), steps=9), (), never)[0].patches.whole == 1
    assert choose_size(pictures(32), Config(steps=9), (), never)[0].patches.whole == 0.5


@pytest.mark.parametrize("kind", ["ddpmpp", "ncsnpp", "adm", "edm2", "dit"])
def test_all_networks_of_a_kind_rise_and_can_be_built(kind):
    ladder = networks(Network(kind=kind))
    sizes = [parameters(Config(network=network)) for network in ladder]
    assert sizes == sorted(set(sizes)) and all(more < 4.1 * less for less, more in pairwise(sizes))
    assert smallest(Network(kind=kind)) == ladder[0]


def test_what_does_not_fit_the_memory_is_not_chosen():
    plenty, _ = choose_size(pictures(), Config(minutes=1e5), (), speed(1e14, memory=10**12))
    little, _ = choose_size(pictures(), Config(minutes=1e5), (), speed(1e14, memory=10**9))
    assert parameters(little) * 5 * 4 < 0.8e9 < parameters(plenty) * 5 * 4
    images_too, _ = choose_size(pictures(), Config(minutes=1e5), (), speed(1e14, activations=2e8, memory=10**9))
    assert parameters(images_too) < parameters(little)


def test_at_most_three_networks_are_timed(monkeypatch):
    timed = []

    def measure(config):
        timed.append(config.network.width)
        return speed(5e10 * len(timed) ** 3)(config)

    choose_size(pictures(), Config(minutes=600), (), measure)
    assert 2 <= len(timed) <= 3 and len(set(timed)) == len(timed)


def test_the_network_chosen_has_its_own_speed_where_it_was_timed():
    """Here each of two networks, by its own speed, says that the other is worth more."""
    worth_of = {16: 1_160_000, 20: 850_000}  # parameters, and these widths have 745,091 and 1,161,843
    operations = {width: operations_worth(each, 32 * 32) for width, each in worth_of.items()}

    def measure(config):
        return Speed(0.0, operations[config.network.width] / 1800, 1e6, None)

    config, (reason, *_) = choose_size(pictures(), Config(minutes=30), (), measure)
    assert f"about {operations[config.network.width]:.1e} operations" in reason


@pytest.mark.parametrize("minutes", [3, 300, 30_000])
def test_the_choice_does_not_depend_on_the_network_timed_first(minutes, monkeypatch):
    def measure(config):  # small networks reach less of a machine, as on a GPU
        return Speed(0.01, 1e9 * parameters(config) ** 0.4, 1e6, None)

    found = set()
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(module, "choose_device", lambda _, device=device: torch.device(device))
        config, _ = choose_size(pictures(64), Config(minutes=minutes), ("engine.precision",), measure)
        found.add((config.network, config.batch))
    assert len(found) == 1


def test_how_many_epochs_it_makes():
    _, reasons = choose_size(pictures(num=50), Config(images=1000), (), never)
    assert any(reason.startswith("epochs 20.0: about 1,000 images") for reason in reasons)


def test_a_batch_of_the_law_is_divided_where_memory_asks_for_it():
    assert choose_size(pictures(), Config(steps=9), (), never)[0].engine.accumulation == "auto"
    given = Config(steps=9, batch=8, engine=Engine(accumulation=2))
    assert choose_size(pictures(), given, (), never)[0].engine.accumulation == 2
    assert module.WORKSPACE > 1
