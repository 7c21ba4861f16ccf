"""Tiny image models on disk and toy images that they can learn: what the end-to-end tests on images run on."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 210)}


def save_tiny_vit(folder: Path, *, image_size: int = 32, processor: bool = True) -> Path:
    """A ViT with random weights (fixed seed) for images of `image_size`, with its image processor unless not wanted."""
    import torch
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    config = ViTConfig(
        image_size=image_size,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ViTModel(config, add_pooling_layer=False)
    model.save_pretrained(folder)
    if processor:
        ViTImageProcessorPil(size={"height": image_size, "width": image_size}).save_pretrained(folder)
    return folder


def toy_image(colour: str, draw: random.Random, size: tuple[int, int] = (20, 24)) -> Image.Image:
    """A square of a colour somewhere on a dark, noisy ground; no two alike for one stream of draws."""
    image = Image.new("RGB", size)
    image.putdata([(draw.randrange(60), draw.randrange(60), draw.randrange(60)) for _ in range(size[0] * size[1])])
    left, top = draw.randrange(size[0] // 2), draw.randrange(size[1] // 2)
    ImageDraw.Draw(image).rectangle((left, top, left + 9, top + 9), fill=COLOURS[colour])
    return image


def save_toy_images(folder: Path, each: int = 30, seed: int = 0) -> Path:
    """A folder of three class folders with `each` PNG files."""
    draw = random.Random(seed)
    for colour in COLOURS:
        (folder / colour).mkdir(parents=True)
        for number in range(each):
            toy_image(colour, draw).save(folder / colour / f"{number:03}.png")
    return folder
