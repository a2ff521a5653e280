"""Extractors by kind, file and callable; what is wrong with a file in one line."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import patch_diffusion as pd
from needs import need
from patch_diffusion.evaluation.extractors import mobilenet as mobilenet_module
from patch_diffusion.evaluation.extractors.choose import extractors_folder
from patch_diffusion.evaluation.extractors.extractor import as_extractor, conversion
from patch_diffusion.evaluation.extractors.inception import FILE, Inception, enlarge
from patch_diffusion.evaluation.extractors.random_convolutions import random_convolutions

MOBILENET = Path(__file__).parents[2] / "shared" / "data" / "mobilenet_v2_imagenet_f16.safetensors"


def pictures(num=3, channels=3, height=16, width=16, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, channels, height, width), dtype=torch.uint8, generator=random)


def refusal(what, **options):
    with pytest.raises(pd.InputError) as refused:
        pd.open_extractor(what, **options)
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_random_convolutions_are_the_same_everywhere():
    """Recorded numbers: another version of torch must make the same features."""
    ramp = (torch.arange(3 * 8 * 12) % 251).to(torch.uint8).reshape(1, 3, 8, 12)
    found = random_convolutions()(ramp)
    assert found.shape == (1, 368) and found.dtype == torch.float32
    recorded = [0.818066, 0.205293, 0.67845, 0.782909, 0.695938, 0.041874]
    torch.testing.assert_close(found[0, [0, 5, 20, 60, 150, 367]], torch.tensor(recorded), rtol=1e-4, atol=1e-6)
    assert not torch.equal(random_convolutions(1)(ramp), found)
    assert random_convolutions(1).settings != random_convolutions().settings


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 16, 16), (2, 5, 40), (4, 200, 130), (7, 9, 9)])
def test_random_convolutions_take_any_shape(shape):
    images = pictures(2, *shape)
    assert pd.open_extractor("random")(images).shape == (2, 368)


def test_random_convolutions_see_where_things_are():
    images = pictures(1, height=32, width=32)
    turned = images.flip(2)
    one, other = pd.open_extractor()(torch.cat([images, turned]))
    assert (one - other).norm() > 0.01 * one.norm()


def test_an_image_keeps_its_features_in_any_batch():
    images = pictures(5)
    extractor = pd.open_extractor()
    torch.testing.assert_close(extractor(images)[3:4], extractor(images[3:4]))


def means(images):
    return images.float().mean(dim=(2, 3))


def test_a_callable():
    extractor = pd.open_extractor(means)
    assert extractor.name == "means" and extractor.settings is None and extractor.channels is None
    torch.testing.assert_close(extractor(pictures()), means(pictures()))
    assert pd.open_extractor(extractor) is extractor
    named = as_extractor(
        type("Named", (), {"name": "n", "settings": {"a": 1}, "channels": 3, "__call__": lambda s, x: x})()
    )
    assert (named.name, named.settings, named.channels) == ("n", {"a": 1}, 3)


def test_channels_are_converted_and_it_is_said():
    extractor = pd.Extractor("means", means)
    grey = pictures(channels=1)
    torch.testing.assert_close(extractor(grey), means(grey).expand(-1, 3))
    assert conversion(1, 3) == "images of 1 channel are repeated to 3"
    clear = torch.cat(
        [pictures(), torch.tensor([0, 255, 51]).to(torch.uint8).reshape(3, 1, 1, 1).expand(-1, 1, 16, 16)], 1
    )
    found = extractor(clear)
    torch.testing.assert_close(found[0], torch.full((3,), 128.0))
    torch.testing.assert_close(found[1], means(clear[1:2, :3])[0])
    torch.testing.assert_close(found[2], means(clear[2:, :3])[0] * 0.2 + 128 * 0.8, atol=0.5, rtol=0)
    assert "4 channels are laid over grey" in conversion(4, 3)
    with pytest.raises(pd.InputError, match="'means' takes images of 3 channels, not 5"):
        extractor(pictures(channels=5))
    assert conversion(5, None) == conversion(3, 3) == ""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda images: means(images) / 0 * 0, "not finite numbers of 3 of 3 images"),
        (lambda images: images.float(), r"must make \(3, d\) features, and made \(3, 3, 16, 16\)"),
        (lambda images: means(images)[:2], r"made \(2, 3\)"),
        (lambda images: 3, "made a int"),
    ],
)
def test_features_that_cannot_be_used(function, message):
    with pytest.raises(pd.InputError, match=message):
        pd.Extractor("mine", function)(pictures())


def test_images_that_are_none():
    with pytest.raises(pd.InputError, match="uint8 images"):
        pd.Extractor("mine", means)(pictures().float())


def tensorflow_resize(image, side):
    """Written out: pixel i lies at i * length / side."""
    height, width = image.shape
    out = np.zeros((side, side))
    for i in range(side):
        for j in range(side):
            y, x = np.float32(i) * np.float32(height / side), np.float32(j) * np.float32(width / side)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            top = image[y0, x0] * (1 - (x - x0)) + image[y0, x1] * (x - x0)
            low = image[y1, x0] * (1 - (x - x0)) + image[y1, x1] * (x - x0)
            out[i, j] = top * (1 - (y - y0)) + low * (y - y0)
    return out


@pytest.mark.parametrize("shape", [(5, 8), (13, 13), (20, 31)])
def test_enlarging_as_tensorflow_does(shape):
    image = pictures(1, 1, *shape).float()
    found = enlarge(image, 13)[0, 0].double().numpy()
    np.testing.assert_allclose(found, tensorflow_resize(image[0, 0].double().numpy(), 13), atol=1e-3)
    usual = F.interpolate(image, (13, 13), mode="bilinear", align_corners=False)[0, 0].numpy()
    assert shape == (13, 13) or abs(usual - found).max() > 1


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """An Inception with weights of no meaning that keep the size of values."""
    torch.manual_seed(0)
    network = Inception()
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    path = tmp_path_factory.mktemp("weights") / FILE
    torch.save(network.state_dict(), path)
    return path, network.eval()


@pytest.mark.slow
def test_the_architecture_of_inception():
    """The published sizes: 27,161,264 parameters, of which 3,326,696 in a head for training that FID has not, and 8
    classes more."""
    with torch.device("meta"):
        network = Inception()
        shapes = {}
        for name in ("Conv2d_4a_3x3", "Mixed_5b", "Mixed_5d", "Mixed_6a", "Mixed_6e", "Mixed_7a", "Mixed_7c"):
            network.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: shapes.update({name: tuple(output.shape[1:])})  # pyright: ignore[reportAttributeAccessIssue]
            )
        found = network.eval()(torch.zeros(1, 3, 299, 299))
    assert sum(each.numel() for each in network.parameters()) == 27_161_264 - 3_326_696 + 8 * 2049
    assert found.shape == (1, 2048)
    assert shapes == {
        "Conv2d_4a_3x3": (192, 71, 71),
        "Mixed_5b": (256, 35, 35),
        "Mixed_5d": (288, 35, 35),
        "Mixed_6a": (768, 17, 17),
        "Mixed_6e": (768, 17, 17),
        "Mixed_7a": (1280, 8, 8),
        "Mixed_7c": (2048, 8, 8),
    }


@pytest.mark.slow
def test_inception_by_its_file_and_by_its_kind(inception_file, tmp_path):
    path, network = inception_file
    images = pictures(2, height=40, width=30)
    with torch.inference_mode():
        expected = network(images)
    extractor = pd.open_extractor(path)
    torch.testing.assert_close(extractor(images), expected)
    assert extractor.name == "inception" and extractor(pictures(1, channels=1)).shape == (1, 2048)
    assert extractor.note == ""
    message = refusal("inception")
    assert FILE in message and str(extractors_folder()) in message and "nothing is downloaded" in message
    extractors_folder().mkdir(parents=True)
    tensors = {name: tensor for name, tensor in network.state_dict().items() if "num_batches" not in name}
    save_file(tensors, (extractors_folder() / FILE).with_suffix(".safetensors"))
    of_kind = pd.open_extractor("inception")
    torch.testing.assert_close(of_kind(images), expected)
    assert of_kind.settings["weights"] != extractor.settings["weights"]  # another file


def test_a_pool_of_inception_does_not_count_what_was_padded(inception_file):
    """An image of one grey stays one grey within a block, but for what convolutions pad."""
    _, network = inception_file
    grey = torch.full((1, 192, 9, 9), 0.7)
    pooled = network.Mixed_5b(grey)[:, -32:]
    torch.testing.assert_close(pooled, pooled[:, :, :1, :1].expand_as(pooled))


@pytest.mark.slow
def test_files_with_other_shapes(inception_file, tmp_path):
    _, network = inception_file
    weights = {name: tensor for name, tensor in network.state_dict().items() if "num_batches" not in name}
    weights["Mixed_6b.branch7x7_2.conv.weight"] = torch.zeros(128, 128, 7, 1)
    torch.save(weights, tmp_path / "wrong.pth")
    message = refusal(tmp_path / "wrong.pth")
    assert "Mixed_6b.branch7x7_2.conv.weight is (128, 128, 7, 1), and (128, 128, 1, 7) is expected" in message
    weights.pop("fc.bias")
    weights["Mixed_6b.branch7x7_2.conv.weight"] = network.Mixed_6b.branch7x7_2.conv.weight.detach()
    torch.save(weights, tmp_path / "short.pth")
    assert "its tensor fc.bias is missing" in refusal(tmp_path / "short.pth")
    weights["fc.bias"] = torch.full((1008,), torch.nan)
    torch.save({"state_dict": weights}, tmp_path / "nan.pth")
    assert "fc.bias has values that are not finite" in refusal(tmp_path / "nan.pth")


def mobilenet_weights():
    random = torch.Generator().manual_seed(0)
    shapes = mobilenet_module._shapes()
    return {
        name: torch.randn(shape, generator=random) / max(1, np.prod(shape[1:])) ** 0.5 for name, shape in shapes.items()
    }


@pytest.mark.slow
def test_mobilenet_by_the_names_of_its_tensors(tmp_path):
    weights = mobilenet_weights()
    assert sum(tensor.numel() for tensor in weights.values()) == 3_489_097 - 1001 * 1281  # but the classifier
    save_file(weights, tmp_path / "mobile.safetensors")
    extractor = pd.open_extractor(str(tmp_path / "mobile.safetensors"))
    assert extractor.name == "mobilenet_v2" and extractor.settings["side"] == 128
    assert extractor(pictures(2, height=20, width=30)).shape == (2, 1280)
    assert extractor(pictures(2, height=300, width=200)).shape == (2, 1280)
    weights["block7.depthwise.weight"] = torch.zeros(192, 1, 5, 5)
    save_file(weights, tmp_path / "wrong.safetensors")
    assert "block7.depthwise.weight is (192, 1, 5, 5), and (192, 1, 3, 3)" in refusal(tmp_path / "wrong.safetensors")


def test_mobilenet_is_the_network_of_its_weights():
    """The architecture as the description of the weights writes it, on a picture of the size that it is made for."""
    if not MOBILENET.exists():
        pytest.skip("the weights of MobileNetV2 are not beside this checkout")
    from safetensors.torch import load_file

    tensors = {name: tensor.float() for name, tensor in load_file(MOBILENET).items()}

    def conv(x, name, stride=1, groups=1, act=True):
        kernel = tensors[name + ".weight"]
        if kernel.shape[-1] == 3:
            x = F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        x = F.conv2d(x, kernel, tensors[name + ".bias"], stride, groups=groups)
        return x.clamp(0, 6) if act else x

    images = pictures(2, height=128, width=128)
    x = conv(images.float() / 127.5 - 1, "stem", 2)
    for i in range(1, 18):
        stride, y = {2: 2, 4: 2, 7: 2, 14: 2}.get(i, 1), x
        if i > 1:
            y = conv(y, f"block{i}.expand")
        y = conv(y, f"block{i}.depthwise", stride, groups=y.shape[1])
        y = conv(y, f"block{i}.project", act=False)
        x = x + y if stride == 1 and x.shape == y.shape else y
    expected = conv(x, "head").mean((2, 3))
    torch.testing.assert_close(pd.open_extractor(MOBILENET)(images), expected, rtol=1e-4, atol=1e-4)


class Scripted(torch.nn.Module):
    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        found = images.float().mean(dim=(2, 3))
        return found if return_features else found[:, :1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(tmp_path):
    torch.jit.script(Scripted()).save(str(tmp_path / "mine.pt"))
    extractor = pd.open_extractor(tmp_path / "mine.pt")
    torch.testing.assert_close(extractor(pictures()), means(pictures()))
    assert extractor.name == "mine"
    other = torch.jit.trace(torch.nn.Linear(7, 2), torch.zeros(1, 7))
    other.save(str(tmp_path / "other.pt"))  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(pd.InputError, match=r"other.pt cannot take images \(3, 3, 16, 16\)"):
        pd.open_extractor(tmp_path / "other.pt")(pictures())
    content = (tmp_path / "mine.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(content[: len(content) // 2])
    assert "half.pt holds no weights" in refusal(tmp_path / "half.pt")


def test_files_that_are_none(tmp_path):
    (tmp_path / "empty.pth").write_bytes(b"")
    assert "holds no weights that can be read" in refusal(tmp_path / "empty.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "holds no tensors by name" in refusal(tmp_path / "list.pth")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "no network that is known here" in refusal(tmp_path / "other.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"12345")
    assert "is damaged" in refusal(tmp_path / "bad.safetensors")
    assert "there is no extractor at" in refusal(tmp_path / "nowhere.pth")
    assert "did you mean 'inception'" in refusal("incepton")
    assert "is no extractor" in refusal(tmp_path)


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("it-was-run"),))


def test_nothing_in_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"Conv2d_1a_3x3.conv.weight": Malicious()}, tmp_path / "evil.pth")
    assert "without running code in it" in refusal(tmp_path / "evil.pth")
    assert not (tmp_path / "it-was-run").exists()


@pytest.fixture
def dinov2_folder(tmp_path):
    transformers = need("transformers", "evaluation")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=56
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    return tmp_path / "dino"


@pytest.mark.slow
def test_dinov2_from_a_folder(dinov2_folder):
    extractor = pd.open_extractor(dinov2_folder)
    assert extractor.name == "dinov2"
    images = pictures(2, height=30, width=50)
    found = extractor(images)
    assert found.shape == (2, 16) and not torch.equal(found[0], found[1])
    extractors_folder().mkdir(parents=True)
    dinov2_folder.rename(extractors_folder() / "dinov2")
    torch.testing.assert_close(pd.open_extractor("dinov2")(images), found)
    next((extractors_folder() / "dinov2").glob("*.safetensors")).unlink()
    assert "no weights in safetensors" in refusal("dinov2")


def test_dinov2_that_is_not_there(tmp_path, monkeypatch):
    assert "dinov2" in refusal("dinov2") and "nothing is downloaded" in refusal("dinov2")
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    assert "no weights in safetensors" in refusal(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'patch_diffusion[evaluation]'" in refusal(tmp_path)
