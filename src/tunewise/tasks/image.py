"""Classification of images: read, decoded once to find damage and repeats, shown to the model at one size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PretrainedConfig

from tunewise.errors import ModelError, first_line
from tunewise.locate import resolve
from tunewise.models.head import Head, needs_interpolation
from tunewise.models.language import has_causal_head
from tunewise.models.load import meta_model
from tunewise.registry import TASKS
from tunewise.spec import DataSpec, ModelSpec
from tunewise.tasks.contract import Encoded, Split
from tunewise.tasks.files import digest_by_part
from tunewise.tasks.image_files import IMAGE_FILES, ImageRow, looks_like_images, read_images
from tunewise.tasks.labels import labels_of, load_labelled, merge_equal_numbers
from tunewise.tasks.pixels import ImageProcessor, Pixels, decode, pixel_key
from tunewise.tasks.scores import ClassificationScores
from tunewise.tasks.splits import Record

_MOST_CACHED = 2 * 2**30  # bytes of decoded images in memory; never more than a quarter of what is free


class Picture:
    """An image of a split: where it comes from and, once it was shown, its pixels."""

    __slots__ = ("pixels", "row")

    def __init__(self, row: ImageRow) -> None:
        self.row = row
        self.pixels: NDArray[np.generic] | None = None


class ImageClassification(ClassificationScores):
    """Images with one label each. An example holds a `Picture`; its pixels are made when a batch is.

    Every split goes through the same pipeline, the model's own and without augmentation, so that train and test
    losses can be compared.
    """

    has_tokens = False

    def __init__(self, model: ModelSpec, data: DataSpec, max_length: int = 0) -> None:
        self.positive = data.positive
        self.pixels = Pixels(model, data.image_size)
        labels, splits = load_labelled(data, lambda path: _records(data, path, self.pixels.mode), "image")
        self._set_up(model, labels)
        parts = {part: self._examples(records) for part, records in splits.parts.items()}
        notes = [*splits.notes, *self.pixels.notes, *self._check_size(), *self.describe_positive()]
        height, width = self.pixels.size[1:]
        self.set_parts(parts, f"images of {height} x {width} pixels", [*data.notes, *notes])
        size = int(np.prod(self.pixels.size)) * (1 if self.pixels.compact else 4)
        count = sum(map(len, parts.values()))
        self.cache_pixels = count * size <= min(_MOST_CACHED, psutil.virtual_memory().available // 4)

    @classmethod
    def reopen(cls, model: ModelSpec, data: DataSpec, max_length: int, labels: Sequence[str]) -> Self:
        """Without the run's data, which is not read, and without the call of `__init__`."""
        task = cls.__new__(cls)
        task.pixels = Pixels(model, data.image_size)
        task._set_up(model, labels)
        return task

    def _set_up(self, model: ModelSpec, labels: Sequence[str]) -> None:
        self.model_spec = model
        self.labels = list(labels)
        self.head = replace(self.make_head(self.labels), image_size=self.pixels.size[1:])
        self.cache_pixels = False

    @classmethod
    def recognises(cls, data: DataSpec) -> bool:
        return data.image is not None or data.image_size is not None or looks_like_images(resolve(data.path))

    @classmethod
    def recognises_model(cls, config: PretrainedConfig) -> bool:
        return hasattr(config, "num_channels") and hasattr(config, "image_size") and not has_causal_head(config)

    @classmethod
    def read_labels(cls, data: DataSpec) -> list[str]:
        """The classes of the training data, sorted; nothing is decoded."""
        rows = read_images(resolve(data.path), data.image, data.label)
        records, _ = merge_equal_numbers({"train": [Record(None, r.label, r.label, r.where) for r in rows]})
        return labels_of(records["train"], data)

    @classmethod
    def digest(cls, data: DataSpec) -> str:
        """sha256 over the images and parquet files that `data` names."""
        return digest_by_part(data, IMAGE_FILES)

    @classmethod
    def make_head(cls, labels: Sequence[str], data: DataSpec | None = None) -> Head:
        return Head(
            "AutoModelForImageClassification",
            "a classifier of images",
            labels=tuple(labels),
            problem_type="single_label_classification",
            image_size=(data.image_size, data.image_size) if data and data.image_size else None,
        )

    @classmethod
    def load_processor(cls, model: ModelSpec, data: DataSpec) -> ImageProcessor:
        return Pixels(model, data.image_size).processor

    @classmethod
    def sample_inputs(cls, model: nn.Module, head: Head, batch: int, length: int) -> dict[str, Tensor]:
        weight = next(model.parameters())
        side = getattr(model.config, "image_size", 224)
        height, width = head.image_size or (side if isinstance(side, (tuple, list)) else (side, side))
        shape = (batch, getattr(model.config, "num_channels", 3), height, width)
        values = torch.arange(math.prod(shape), device=weight.device).view(shape) % 251
        labels = torch.zeros(batch, dtype=torch.long, device=weight.device)
        return {"pixel_values": (values / 125 - 1).to(weight.dtype), "labels": labels}

    def _examples(self, records: Sequence[Record]) -> Split:
        index = {label: i for i, label in enumerate(self.labels)}
        return [{"image": Picture(record.content), "labels": index[record.label]} for record in records]

    def _check_size(self) -> list[str]:
        """A blank image through a model without weights. Raises `ModelError` where it does not fit."""
        model = meta_model(self.model_spec, self.head).eval()
        channels, height, width = self.pixels.size
        try:
            with torch.no_grad():
                model(pixel_values=torch.zeros(1, channels, height, width, device="meta"))
        except (ValueError, RuntimeError) as error:
            raise ModelError(
                f"model {self.model_spec.path!r} can't take images of {channels} x {height} x {width} "
                f"({first_line(error)}); another --image-size may fit"
            ) from None
        if needs_interpolation(model, (height, width)):
            return [
                f"The model was pretrained on images of another size than {height} x {width}: its position embeddings "
                "are interpolated; pass interpolate_pos_encoding=True to its forward where you use the adapter."
            ]
        return []

    def read_inputs(self, data: DataSpec) -> tuple[list[str], Split]:
        rows = read_images(resolve(data.path), data.image, None)
        return [row.where for row in rows], [{"image": Picture(row), "labels": 0} for row in rows]

    def plain_code(self, source: str, data: DataSpec) -> tuple[str, str]:
        name, processor = self.pixels.plain_code(source)
        first = read_images(resolve(data.path), data.image, None)[0].source
        image = f"load_image({str(first.absolute()) if isinstance(first, Path) else 'image.png'!r})"
        grey = ".convert('L')" if self.pixels.mode == "L" else ""
        sized = needs_interpolation(meta_model(self.model_spec, self.head), self.pixels.size[1:])
        options = ", interpolate_pos_encoding=True" if sized else ""
        return name, (
            f"from transformers.image_utils import load_image; processor = {processor}; "
            f"logits = model(processor({image}{grey}, return_tensors='pt')['pixel_values']{options}).logits; "
            "print(dict(zip(model.config.id2label.values(), logits.softmax(-1)[0].tolist())))"
        )

    def collate(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        shown = self.pixels.batch([self._shown(example["image"]) for example in examples])
        return {"pixel_values": shown, "labels": torch.tensor([example["labels"] for example in examples])}

    def describe(self, batch: dict[str, Tensor]) -> str:
        count, _, height, width = batch["pixel_values"].shape
        return f"{count} images of {height} x {width} pixels"

    def _shown(self, picture: Picture) -> NDArray[np.generic]:
        if picture.pixels is not None:
            return picture.pixels
        pixels = self.pixels.prepare(decode(picture.row, self.pixels.mode))
        if self.cache_pixels:
            picture.pixels = pixels
        return pixels


def _records(data: DataSpec, path: Path, mode: str) -> list[Record]:
    """Every image decoded once, to detect damaged ones and repeats; Pillow decodes outside of Python's lock."""
    rows = read_images(path, data.image, data.label)
    with ThreadPoolExecutor() as pool:
        keys = pool.map(lambda row: pixel_key(decode(row, mode)), rows)
        return [Record(key, row.label, row.label, row.where, row) for row, key in zip(rows, keys, strict=True)]


TASKS.register("image", ImageClassification)
