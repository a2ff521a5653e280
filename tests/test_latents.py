import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import patch_diffusion as pd
from needs import need
from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.latents import folder as latent_folder
from patch_diffusion.data.latents.autoencoder import Autoencoder
from patch_diffusion.data.latents.codec import LatentCodec, codec_of
from patch_diffusion.data.latents.folder import LatentSet, encode_latents, is_latents, open_latents

pytestmark = pytest.mark.slow

diffusers = need("diffusers", "hub")

KL = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 8],
    "latent_channels": 5,
    "norm_num_groups": 4,
}
DC = {
    "latent_channels": 4,
    "attention_head_dim": 4,
    "encoder_block_out_channels": [8, 8, 8],
    "decoder_block_out_channels": [8, 8, 8],
    "encoder_layers_per_block": [1, 1, 1],
    "decoder_layers_per_block": [1, 1, 1],
    "encoder_qkv_multiscales": [[], [], []],
    "decoder_qkv_multiscales": [[], [], []],
}


@pytest.fixture
def make_vae(tmp_path):
    """``make_vae(kind, seed)``: the folder of a small autoencoder with random weights, as diffusers saves it."""

    def make(kind="kl", seed=0, name=None, variant=None, **options):
        torch.manual_seed(seed)
        if kind == "kl":
            vae = diffusers.AutoencoderKL(**{**KL, **options})
            with torch.no_grad():  # else random weights give all images nearly the same latents
                vae.quant_conv.weight[:5] *= 20
        else:
            vae = diffusers.AutoencoderDC(**{**DC, **options})
        folder = tmp_path / (name or f"{kind}-{seed}")
        (vae if variant is None else vae.half()).save_pretrained(folder, variant=variant)
        return folder

    return make


@pytest.fixture
def images():
    """70 random 8 x 12 pictures of two classes."""
    pixels = torch.randint(0, 256, (70, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return pd.ImageSet(pixels, torch.arange(70) % 2, ("cat", "dog"))


def reference(folder, kind, images):
    """Mean and standard deviation of the latents, by diffusers itself."""
    pixels = images.pixels.float() / 127.5 - 1
    with torch.no_grad():
        if kind == "dc":
            latents = diffusers.AutoencoderDC.from_pretrained(folder, low_cpu_mem_usage=False).encode(pixels).latent
            return latents, torch.zeros_like(latents)
        found = diffusers.AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).encode(pixels).latent_dist
        return found.mean, found.std


@pytest.mark.parametrize(("kind", "factor", "channels", "stored"), [("kl", 2, 5, 10), ("dc", 4, 4, 4)])
def test_latents_are_those_of_diffusers_whitened(make_vae, images, tmp_path, kind, factor, channels, stored):
    folder = make_vae(kind)
    latents = encode_latents(images, folder, tmp_path / "latents")
    mean, deviation = reference(folder, kind, images)
    assert latents.pixels.shape == (70, stored, 8 // factor, 12 // factor) and latents.pixels.dtype == torch.float16
    assert latents.channels == channels and latents.resolution == (8 // factor, 12 // factor) and len(latents) == 70
    assert torch.equal(latents.labels, images.labels) and latents.class_names == ("cat", "dog")

    codec, batch = latents.codec, latents.batch(np.arange(70))[0]
    torch.testing.assert_close(codec.latents(codec.encode(batch)), mean, atol=2e-3, rtol=2e-3)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    drawn = codec.encode(batch, noise)
    torch.testing.assert_close(codec.latents(drawn), mean + deviation * noise, atol=1e-2, rtol=2e-3)

    variance, centre = mean.var((0, 2, 3), correction=0) + deviation.square().mean((0, 2, 3)), mean.mean((0, 2, 3))
    torch.testing.assert_close(torch.tensor(codec.mean), centre, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(torch.tensor(codec.deviation), variance.sqrt(), atol=2e-3, rtol=2e-3)
    assert latents.standard_deviation == 0.5
    assert drawn.std((0, 2, 3)).numpy() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("kind", ["kl", "dc"])
def test_samples_are_decoded_by_the_autoencoder(make_vae, images, tmp_path, kind):
    folder = make_vae(kind)
    codec = encode_latents(images, folder, tmp_path / "latents").codec
    model_space = torch.randn(3, len(codec.mean), 2, 3, dtype=torch.float64) / 2
    with torch.inference_mode():
        pixels = codec.decode(model_space)
    decoder = getattr(diffusers, "AutoencoderKL" if kind == "kl" else "AutoencoderDC").from_pretrained(
        folder, low_cpu_mem_usage=False
    )
    factor = torch.tensor(codec.deviation)[:, None, None] / 0.5
    latents = model_space * factor + torch.tensor(codec.mean)[:, None, None]
    with torch.no_grad():
        expected = ((decoder.decode(latents.float()).sample + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 3, 2 * codec.factor, 3 * codec.factor)
    assert pixels.float().std() > 1 and (pixels == expected).float().mean() > 0.99
    assert torch.equal(codec.decode(model_space), pixels)  # outside inference mode too


def test_the_codec_comes_back_from_json(make_vae, images, tmp_path):
    codec = encode_latents(images, make_vae(), tmp_path / "latents").codec
    stored = json.loads(json.dumps(codec.as_dict()))
    assert stored == codec.as_dict() and codec_of(stored) == codec
    pixels = PixelCodec("uint16", 0, 4095)
    assert codec_of(pixels.as_dict()) == pixels
    assert torch.equal(codec_of(stored).encode(torch.ones(1, 10, 2, 2)), codec.encode(torch.ones(1, 10, 2, 2)))


def test_cutting_and_encoding_commute(make_vae, images, tmp_path):
    latents = encode_latents(images, make_vae(), tmp_path / "latents")
    stored, _ = latents.batch(np.arange(4))
    places = torch.tensor([[0.0, 0.9], [0.9, 0.0], [0.5, 0.5], [0.0, 0.0]])
    cut = pd.random_patches(stored, 2, places=places)
    whole = pd.random_patches(latents.codec.encode(stored), 2, places=places)
    assert torch.equal(latents.codec.encode(cut.pixels), whole.pixels)


def test_what_was_stopped_is_continued(make_vae, images, tmp_path, monkeypatch):
    monkeypatch.setattr(latent_folder, "images_at_once", lambda pixels: 16)
    vae, out = make_vae(), tmp_path / "latents"
    whole = encode_latents(images, vae, tmp_path / "whole")
    encoded = []

    def stopping(self, pixels, encode=Autoencoder.encode):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(len(pixels))
        return encode(self, pixels)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Autoencoder, "encode", stopping)
        encode_latents(images, vae, out)
    assert encoded == [16, 16] and is_latents(out)
    with pytest.raises(pd.InputError, match="not complete"):
        open_latents(out)
    with pytest.raises(pd.InputError, match="a part of other latents"):
        encode_latents(images, make_vae(seed=1), out)
    with (out / "latents.npy").open("ab") as file:
        file.write(b"half a latent")

    encoded[:] = [0] * 10  # does not stop
    with monkeypatch.context() as patch:
        patch.setattr(Autoencoder, "encode", stopping)
        continued = encode_latents(images, vae, out)
    assert encoded[10:] == [16, 16, 6]
    assert torch.equal(continued.pixels, whole.pixels) and continued.codec == whole.codec
    assert not (out / "started.json").exists() and len(list(out.iterdir())) == 4


def test_what_is_there_is_not_made_again_and_not_replaced(make_vae, images, tmp_path, monkeypatch):
    vae, out = make_vae(), tmp_path / "latents"
    first = encode_latents(images, vae, out)
    with monkeypatch.context() as patch:
        patch.setattr(Autoencoder, "encode", None)
        assert torch.equal(encode_latents(images, vae, out).pixels, first.pixels)
    for others in (replace(images, labels=1 - images.labels), replace(images, pixels=255 - images.pixels)):
        with pytest.raises(pd.InputError, match="holds other latents"):
            encode_latents(others, vae, out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(pd.InputError, match="something else"):
        encode_latents(images, vae, tmp_path / "full")


def test_flips_are_made_of_the_mirrored_images(make_vae, images, tmp_path, monkeypatch):
    vae = make_vae()
    mirrored = encode_latents(replace(images, pixels=images.pixels.flip(-1)), vae, tmp_path / "mirrored")
    monkeypatch.setattr(latent_folder, "images_at_once", lambda pixels: 32)  # so that one batch has both
    groups = np.arange(70, dtype=np.uint64) // np.uint64(7)
    both = encode_latents(replace(images, groups=groups), vae, tmp_path / "both", flips=True)
    assert np.array_equal(both.groups, groups) and np.array_equal(both.content, images.content)
    assert len(both) == 140 and torch.equal(both.labels, images.labels.repeat(2))
    assert (both.mirrored, mirrored.mirrored) == (2, 1)
    torch.testing.assert_close(both.pixels[70:].float(), mirrored.pixels.float(), atol=2e-3, rtol=2e-3)
    assert (both.pixels[:70] - mirrored.pixels).abs().max() > 0.1


def test_grey_images_become_colours(make_vae, images, tmp_path):
    grey = replace(images, pixels=images.pixels[:, :1])
    colours = replace(images, pixels=images.pixels[:, :1].expand(-1, 3, -1, -1))
    vae = make_vae()
    first, second = encode_latents(grey, vae, tmp_path / "grey"), encode_latents(colours, vae, tmp_path / "colours")
    assert torch.equal(first.pixels, second.pixels)


def test_a_pipeline_folder_and_half_precision(make_vae, images, tmp_path):
    latents = encode_latents(images, make_vae(), tmp_path / "latents")
    make_vae(name="pipeline/vae", variant="fp16")
    assert not (tmp_path / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors").exists()
    found = encode_latents(images, tmp_path / "pipeline", tmp_path / "found")
    torch.testing.assert_close(found.pixels, latents.pixels, atol=0.02, rtol=0.02)
    before = Autoencoder(make_vae(name="both")).digest
    make_vae(name="both", variant="fp16")
    config = tmp_path / "both" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_diffusers_version": "0.1"}))
    assert Autoencoder(tmp_path / "both").digest == before == latents.codec.digest


def test_training_reads_latents_without_the_autoencoder(make_vae, images, tmp_path):
    vae = make_vae()
    encode_latents(images, vae, tmp_path / "latents")
    shutil.move(vae, tmp_path / "elsewhere")
    latents = open_latents(tmp_path / "latents")
    assert not latents.codec.can_decode
    assert torch.isfinite(latents.codec.encode(latents.batch(np.arange(3))[0])).all()
    with pytest.raises(pd.InputError, match=r"kl-0 is not there: bring that folder"):
        latents.codec.decode(torch.zeros(1, 5, 4, 6))
    found = open_latents(tmp_path / "latents", vae=tmp_path / "elsewhere")
    assert found.codec.can_decode and found.codec.decode(torch.zeros(1, 5, 4, 6)).shape == (1, 3, 8, 12)


def test_a_model_of_latents_is_trained_loaded_and_sampled(make_vae, make_trainer, images, tmp_path):
    vae = make_vae()
    latents = encode_latents(replace(images, pixels=images.pixels.repeat(1, 1, 2, 2)), vae, tmp_path / "latents")
    trainer = make_trainer(images=latents)
    fixed = replace(latents.codec, posterior=False)
    means = LatentSet(latents.pixels[:, :5].contiguous(), latents.labels, latents.class_names, codec=fixed)
    first, same = trainer.train_step()[1], make_trainer("same", images=latents).train_step()[1]
    assert first == same != make_trainer("means", images=means).train_step()[1]  # the posterior is drawn from
    trainer.fit(steps=2)
    model = pd.load(tmp_path / "run", device="cpu")
    assert model.codec == latents.codec and model.sigma_data == 0.5
    sample = next(pd.generate(model, [0], steps=2))
    assert sample.pixels.shape == (3, 16, 24) and sample.pixels.dtype == torch.uint8


def test_latents_that_cannot_be_decoded_are_shown_alike_in_any_batch(images):
    codec = LatentCodec((1.0, 0.0), (2.0, 1.0), False, 8, "nowhere")
    torch.manual_seed(0)
    model = pd.Denoiser(pd.UNet(2, 8, (1, 2), 1), resolution=(8, 8), codec=codec)
    together = list(pd.generate(model, range(3), steps=2))
    for sample in together:
        (alone,) = pd.generate(model, [sample.seed], pd.Sampling(steps=2, batch=1))
        assert alone.range == sample.range == (-5.0, 7.0)
        assert (alone.visible.int() - sample.visible.int()).abs().max() <= 1


def test_another_autoencoder_in_its_place(make_vae, images, tmp_path):
    vae = make_vae()
    latents = encode_latents(images, vae, tmp_path / "latents")
    shutil.rmtree(vae)
    make_vae(seed=1, name="kl-0")
    with pytest.raises(pd.InputError, match="its weights differ"):
        latents.codec.decode(torch.zeros(1, 5, 4, 6))
    # Asked for by name, another decoder of such latents is taken, and one of others is not.
    asked = open_latents(tmp_path / "latents", vae=vae)
    assert asked.codec.decode(torch.zeros(1, 5, 4, 6)).shape == (1, 3, 8, 12)
    other = open_latents(tmp_path / "latents", vae=make_vae("dc"))
    with pytest.raises(pd.InputError, match="4 channels at 1/4 of the resolution, but these latents have 5 at 1/2"):
        other.codec.decode(torch.zeros(1, 5, 4, 6))


def test_classes_as_asked_for(make_vae, images, tmp_path):
    encode_latents(images, make_vae(), tmp_path / "latents")
    without = open_latents(tmp_path / "latents", classes=False)
    assert without.labels is None and without.class_names == () and without.num_classes == 0
    assert open_latents(tmp_path / "latents", classes=True).num_classes == 2
    encode_latents(replace(images, labels=None, class_names=()), make_vae(), tmp_path / "plain")
    with pytest.raises(pd.InputError, match="have no classes"):
        open_latents(tmp_path / "plain", classes=True)


def test_images_that_have_no_latents(make_vae, images, tmp_path):
    vae, out = make_vae("dc"), tmp_path / "latents"
    with pytest.raises(pd.InputError, match="multiples of 4, not 8x10"):
        encode_latents(replace(images, pixels=images.pixels[..., :10]), vae, out)
    with pytest.raises(pd.InputError, match="3 channels, and these have 2"):
        encode_latents(replace(images, pixels=images.pixels[:, :2]), vae, out)
    with pytest.raises(pd.InputError, match="images of several sizes"):
        encode_latents(pd.ImageBuckets((images,)), vae, out)
    with pytest.raises(pd.InputError, match="latents already"):
        encode_latents(encode_latents(images, vae, out), vae, tmp_path / "again")


def test_folders_that_hold_no_autoencoder(make_vae, images, tmp_path):
    def refused(folder, reason):
        with pytest.raises(pd.InputError, match=reason):
            encode_latents(images, folder, tmp_path / "latents").codec.decode(torch.zeros(1, 5, 4, 6))

    refused(tmp_path / "nothing", "there is no VAE at")
    vae = make_vae()
    weights, config = vae / "diffusion_pytorch_model.safetensors", vae / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(vae, "cannot be loaded")
    weights.rename(vae / "diffusion_pytorch_model.bin")
    refused(vae, "other formats are not read")
    content = json.loads(config.read_text())
    config.write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    refused(vae, "not the config of an AutoencoderKL")
    config.write_text(json.dumps({**content, "_class_name": "UNet2DModel"}))
    refused(vae, "holds a UNet2DModel")


def test_folders_that_hold_no_latents(make_vae, images, tmp_path):
    with pytest.raises(pd.InputError, match="no latents at"):
        open_latents(tmp_path)
    assert not is_latents(tmp_path)
    out = tmp_path / "latents"
    encode_latents(images, make_vae(), out)
    facts, stored = (out / "latents.json").read_text(), (out / "latents.npy").read_bytes()
    (out / "latents.npy").write_bytes(stored[:-8])
    with pytest.raises(pd.InputError, match="are damaged"):
        open_latents(out)
    (out / "latents.npy").write_bytes(stored)
    for key, value, reason in (
        ("format", 2, "of format 2"),
        ("codec", {}, "are damaged"),
        ("class_names", 3, "damaged"),
    ):
        (out / "latents.json").write_text(json.dumps({**json.loads(facts), key: value}))
        with pytest.raises(pd.InputError, match=reason):
            open_latents(out)


def test_latents_of_another_shape_are_refused():
    codec = LatentCodec((0.0, 0.0), (1.0, 1.0), True, 8, "vae")
    assert LatentSet(torch.zeros(3, 4, 2, 2), codec=codec).channels == 2
    with pytest.raises(pd.InputError, match="floats"):
        LatentSet(torch.zeros(3, 2, 2, 2), codec=codec)
    with pytest.raises(pd.InputError, match="3 latents have 2 labels"):
        LatentSet(torch.zeros(3, 4, 2, 2), torch.zeros(2, dtype=torch.long), codec=codec)


def test_values_that_float16_cannot_hold(make_vae, images, tmp_path, monkeypatch):
    monkeypatch.setattr(Autoencoder, "encode", lambda self, x: torch.full((len(x), 10, 4, 6), 1e6))
    with pytest.raises(pd.InputError, match="not finite"):
        encode_latents(images, make_vae(), tmp_path / "latents")


def test_a_channel_that_is_always_the_same(make_vae, images, tmp_path, monkeypatch):
    def encode(self, pixels):
        latents = torch.zeros(len(pixels), 10, 4, 6)
        latents[:, :4] = torch.randn(latents[:, :4].shape)
        latents[:, 4] = 3.0
        return latents

    monkeypatch.setattr(Autoencoder, "encode", encode)
    latents = encode_latents(images, make_vae(), tmp_path / "latents")
    assert (latents.codec.encode(latents.pixels)[:, 4] == 0).all() and latents.codec.deviation[4] > 0


def test_every_image_counts_where_latents_are_found_again(make_vae, tmp_path):
    vae = make_vae()
    pixels = torch.randint(0, 256, (200, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first = encode_latents(pd.ImageSet(pixels), vae, tmp_path / "latents")
    changed = pixels.clone()
    changed[1] = 0
    with pytest.raises(pd.InputError):
        encode_latents(pd.ImageSet(changed), vae, tmp_path / "latents")
    again = encode_latents(pd.ImageSet(pixels), vae, tmp_path / "latents")
    assert torch.equal(again.pixels, first.pixels)
