"""Weights carried into a network for other images: it denoises at step 0 as its source does."""

from dataclasses import replace

import pytest
import torch

import patch_diffusion as pd
from needs import need
from patch_diffusion.data.attributes import Attribute
from patch_diffusion.data.paired import PairedInput
from patch_diffusion.denoise.carry import carry, channel_means, check_kind, table
from patch_diffusion.denoise.conditions import Conditions

KINDS = ("ddpmpp", "ncsnpp", "adm", "dit", pytest.param("diffusers", marks=pytest.mark.slow))
NAMES = ("cat", "dog", "owl")


def network(kind, channels, **options):
    if kind == "dit":
        return pd.DiT(channels, width=16, depth=1, heads=1, **options)
    if kind != "diffusers":
        return pd.UNet(channels, 8, (1, 1), 1, kind=kind, **options)
    need("diffusers", "hub")
    from patch_diffusion.denoise.networks.timestep_unet import TimestepUNet

    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "layers_per_block": 1}
    model = {**blocks, "block_out_channels": [8, 8], "norm_num_groups": 4}
    unet = {"model": model, "schedule": {}, "prediction": "epsilon", "sigma_data": 0.5}
    return TimestepUNet(channels, unet, **options)


def denoiser(kind, channels=3, coords=True, context=None, seed=0, mean=None, **options):
    """Return a denoiser whose weights are all random, in double precision, so that nothing hides behind a zero."""
    torch.manual_seed(seed)
    made = network(kind, channels, coords=coords, context=context is not None, **options)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return pd.Denoiser(made, 0.5, coords=coords, context=context, mean_data=mean).double().eval()


def noisy(channels, num=3):
    return torch.randn(num, channels, 8, 12, generator=torch.Generator().manual_seed(1)).double()


def denoised(model, images, labels=None, **conditions):
    labels = None if labels is None else torch.tensor(labels)
    told = Conditions(pd.coordinate_grid(8, 12).double(), labels, **conditions)
    with torch.no_grad():
        return model(images, torch.tensor([0.05, 0.7, 9.0]).double(), told)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_other_channels(kind):
    source, images = denoiser(kind), noisy(1)
    grey = denoiser(kind, channels=1, seed=5)
    carry(source, grey)
    expected = denoised(source, images.expand(-1, 3, -1, -1)).mean(dim=1, keepdim=True)
    close(denoised(grey, images), expected)

    five, images = denoiser(kind, channels=5, seed=5), noisy(3)
    carry(source, five)
    repeated = [0, 1, 2, 0, 1]
    close(denoised(five, images[:, repeated]), denoised(source, images)[:, repeated])


@pytest.mark.parametrize("kind", KINDS)
def test_coordinates_and_a_small_copy_begin_without_influence(kind):
    source, target = denoiser(kind, coords=False), denoiser(kind, context=8, seed=5)
    told = [row.part for row in carry(source, target) if row.how.startswith("new")]
    assert told == ["coordinates", "small copy"]
    close(denoised(target, noisy(3), thumbnail=noisy(3)), denoised(source, noisy(3)))


@pytest.mark.parametrize("kind", ["ddpmpp", "dit"])
def test_a_small_copy_of_other_channels(kind):
    source, target = denoiser(kind, context=8), denoiser(kind, channels=5, context=8, seed=5)
    carry(source, target)
    repeated = [0, 1, 2, 0, 1]
    found = denoised(target, noisy(3)[:, repeated], thumbnail=noisy(3)[:, repeated])
    close(found, denoised(source, noisy(3), thumbnail=noisy(3))[:, repeated])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("label_dropout", [0.1, 0.0])
def test_classes_are_carried_by_name_and_others_begin_as_no_class(kind, label_dropout):
    source = denoiser(kind, num_classes=3, label_dropout=label_dropout)
    source.class_names = NAMES
    target = denoiser(kind, num_classes=4, seed=5)
    rows = carry(source, target, class_names=("ape", "owl", "cat", "yak"))
    assert "2 carried by name; 2 new, which begin as 'no class'; 1 not carried" in [row.how for row in rows]
    found = denoised(target, noisy(3), [1, 2, 1])
    close(found, denoised(source, noisy(3), [2, 0, 2]))
    new = denoised(target, noisy(3), [0, 3, -1])
    close(new, denoised(target, noisy(3)))
    if label_dropout:
        close(new, denoised(source, noisy(3)))

    without = denoiser(kind, seed=5)
    carry(source, without)
    close(denoised(without, noisy(3)), new)
    again = denoiser(kind, num_classes=2, seed=6)
    carry(without, again)
    close(denoised(again, noisy(3), [0, 1, -1]), new)


def test_no_class_of_one_that_never_learned_it_is_the_mean_of_its_classes():
    source, target = denoiser("ddpmpp", num_classes=2, label_dropout=0.0), denoiser("ddpmpp", seed=5)
    carry(source, target)
    old, new = source.module.state_dict(), target.module.state_dict()
    mean = old["embed_label.weight"].mean(dim=1) * 2**0.5 + old["embed_label.bias"]
    close(new["embed.0.bias"], old["embed.0.bias"] + old["embed.0.weight"] @ mean)


def test_the_same_classes_are_carried_bit_by_bit():
    source, target = (denoiser("ddpmpp", num_classes=3, seed=seed) for seed in (0, 5))
    rows = carry(source, target, resolution=(8, 8))
    for name, tensor in target.module.state_dict().items():
        assert torch.equal(tensor, source.module.state_dict()[name]), name
    assert ("classes", "3", "3 carried by number") in rows


def test_augmentation():
    source = denoiser("ddpmpp", augment_channels=9)
    same, other, none = (denoiser("ddpmpp", augment_channels=num, seed=5) for num in (9, 15, 0))
    labels = torch.randn(3, 9).double()
    for target in (same, other, none):
        carry(source, target)
        close(denoised(target, noisy(3)), denoised(source, noisy(3)))
    close(denoised(same, noisy(3), augment=labels), denoised(source, noisy(3), augment=labels))
    close(denoised(other, noisy(3), augment=torch.randn(3, 15).double()), denoised(source, noisy(3)))


def test_a_mean_of_each_channel():
    mean = (0.1, -0.4, 0.5)
    source = denoiser("ddpmpp", mean=mean)
    assert channel_means(mean, 5) == pytest.approx((0.1, -0.4, 0.5, 0.1, -0.4))
    assert channel_means((0.3,), 5) == (0.3,)
    one = channel_means(mean, 1)
    target = denoiser("ddpmpp", channels=1, mean=one, seed=5)
    carry(source, target)
    centre = torch.tensor(mean).double()[:, None, None]
    images = noisy(1) - one[0] + centre
    found = denoised(source, images)
    close(denoised(target, noisy(1)), (found - centre).mean(dim=1, keepdim=True) + one[0])


def test_other_shapes_and_kinds_are_refused(model):
    with pytest.raises(pd.InputError, match="another shape: .* does not fit"):
        carry(denoiser("ddpmpp"), denoiser("ncsnpp"))
    with pytest.raises(pd.InputError, match="this is a Linear"):
        carry(pd.Denoiser(torch.nn.Linear(1, 1)), denoiser("ddpmpp"))
    with pytest.raises(pd.InputError, match="denoises pixels, and these images are latents"):
        check_kind(model, object())


def test_the_table_has_80_columns():
    rows = [
        {"part": "source", "change": "runs/" + "x" * 90, "how": "a run"},
        {"part": "noise", "change": "", "how": "b"},
    ]
    lines = table(rows)
    assert max(map(len, lines)) <= 80 and lines[-1] == "noise         b"
    assert "".join(line.strip() for line in lines[:-1]).endswith("xxx: a run")


AGE = Attribute("age", mean=(40.0,), deviation=(10.0,), lowest=(20.0,), highest=(60.0,))
LOW = PairedInput("low", 1, {"dtype": "uint8", "low": 0.0, "high": 255.0})


@pytest.mark.parametrize("kind", ["ddpmpp", "ncsnpp", "dit"])
def test_conditions_and_paired_inputs_begin_without_influence_and_are_carried_if_they_are_the_same(kind):
    told = {"attributes": torch.randn(3, 2).double(), "inputs": torch.randn(3, 2, 8, 12).double()}
    told["around"] = torch.randn(3, 1, 2, 3).double()
    options = {"attribute_channels": 2, "paired_channels": 3}
    source, target = denoiser(kind), denoiser(kind, seed=5, **options)
    target.columns, target.inputs = (AGE,), (LOW,)
    rows = {row.part: row.how for row in carry(source, target)}
    assert rows["conditions"] == rows["paired inputs"] == "new, with weights of zero"
    close(denoised(target, noisy(3), **told), denoised(source, noisy(3)))
    again = denoiser(kind, seed=6, **options)
    with torch.no_grad():
        for weight in target.parameters():
            weight.add_(0.2)
    again.columns, again.inputs = target.columns, target.inputs
    assert {row.part: row.how for row in carry(target, again)}["conditions"] == "carried"
    close(denoised(again, noisy(3), **told), denoised(target, noisy(3), **told))
    other = denoiser(kind, seed=8, attribute_channels=2, paired_channels=5)
    other.columns, other.inputs = (replace(AGE, name="weight"),), (replace(LOW, categories=(0, 1)),)
    carry(target, other)
    more = {**told, "inputs": torch.randn(3, 3, 8, 12).double(), "around": torch.randn(3, 2, 2, 3).double()}
    close(denoised(other, noisy(3), **more), denoised(target, noisy(3)))
