"""Classification of images: read, decoded once to find what is damaged or there twice, shown at one size, scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tunewise.errors import ModelError
from tunewise.locate import resolve
from tunewise.models.head import Head, needs_interpolation
from tunewise.models.load import load_model, meta_model
from tunewise.spec import DataSpec, ModelSpec
from tunewise.store.records import DataFacts
from tunewise.tasks.classification import absent_labels, labels_of, refuse_unseen
from tunewise.tasks.contract import Encoded, Split, StandIn
from tunewise.tasks.digests import digest_by_role
from tunewise.tasks.image_files import ImageRow, image_digest, read_images
from tunewise.tasks.pixels import Pixels, decode
from tunewise.tasks.scores import ClassificationScores
from tunewise.tasks.splits import PARTS, Record, check_fractions, make_splits
from tunewise.words import counted

_MOST_KEPT = 2 * 2**30  # bytes of decoded images kept in memory; never more than a quarter of what is free


class Picture:
    """An image of a split: where it comes from and, once it was shown, its pixels."""

    __slots__ = ("pixels", "row")

    def __init__(self, row: ImageRow) -> None:
        self.row = row
        self.pixels: NDArray[Any] | None = None


class ImageClassification(ClassificationScores):
    """Images with one label each. An example holds a `Picture`; its pixels are made when a batch is.

    Every split goes through the same pipeline, the model's own and without augmentation, so that train and test
    losses can be compared.
    """

    def __init__(self, model: ModelSpec, data: DataSpec) -> None:
        self.model_spec = model
        self.pixels = Pixels(model, data.image_size)
        labels, splits, notes = _load(data, self.pixels.mode)
        self.labels = labels
        self.train = self._examples(splits["train"])
        self.validation = self._examples(splits["validation"])
        self.test = self._examples(splits["test"])
        self.facts = DataFacts(
            train=len(self.train),
            validation=len(self.validation),
            test=len(self.test),
            labels=labels,
            notes=[*notes, *self.pixels.notes, *self._check_size()],
        )
        count = sum(map(len, splits.values()))
        size = int(np.prod(self.pixels.size)) * (1 if self.pixels.compact else 4)
        self.keep_pixels = count * size <= min(_MOST_KEPT, psutil.virtual_memory().available // 4)

    @property
    def head(self) -> Head:
        """What the model ends in."""
        return Head("image", tuple(self.labels), self.pixels.size[1:])

    def _examples(self, records: Sequence[Record]) -> Split:
        index = {label: i for i, label in enumerate(self.labels)}
        return [{"image": Picture(record.content), "labels": index[record.label]} for record in records]

    def _check_size(self) -> list[str]:
        """One image of no content through a model of no weights. Raises `ModelError` where it does not fit."""
        model = meta_model(self.model_spec, self.head).eval()
        channels, height, width = self.pixels.size
        try:
            with torch.no_grad():
                model(pixel_values=torch.zeros(1, channels, height, width, device="meta"))
        except (ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            raise ModelError(
                f"model {self.model_spec.path!r} can't take images of {channels} x {height} x {width} ({reason}); "
                "another --image-size may fit"
            ) from None
        if needs_interpolation(model, (height, width)):
            return [
                f"The model was pretrained on images of another size than {height} x {width}: its position embeddings "
                "are interpolated; pass interpolate_pos_encoding=True to its forward where you use the adapter."
            ]
        return []

    def length(self, example: Encoded) -> int:
        return 1  # all images have one size

    def collate(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        shown = self.pixels.batch([self._shown(example["image"]) for example in examples])
        return {"pixel_values": shown, "labels": torch.tensor([example["labels"] for example in examples])}

    def describe(self, batch: dict[str, Tensor]) -> str:
        count, _, height, width = batch["pixel_values"].shape
        return f"{count} images of {height} x {width} pixels"

    def load_model(self, seed: int) -> nn.Module:
        return load_model(self.model_spec, self.head, seed=seed)

    def _shown(self, picture: Picture) -> NDArray[Any]:
        if picture.pixels is not None:
            return picture.pixels
        pixels = self.pixels.prepare(decode(picture.row, self.pixels.mode).image)
        if self.keep_pixels:
            picture.pixels = pixels
        return pixels


def image_stand_in(model: ModelSpec, data: DataSpec, labels: list[str]) -> StandIn:
    """Two images of noise, for any model of images."""
    pixels = Pixels(model, data.image_size)
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    shown = pixels.batch([pixels.prepare(Image.fromarray(one).convert(pixels.mode)) for one in noise])
    head = Head("image", tuple(labels), pixels.size[1:])
    return StandIn(head, {"pixel_values": shown}, pixels.processor, None)


def image_labels(spec: DataSpec) -> list[str]:
    """The classes of the training data, sorted; nothing is decoded."""
    rows = read_images(resolve(spec.path), spec.image, spec.label, encoding=spec.encoding)
    return labels_of([Record(None, row.label, row.label, row.where) for row in rows], spec)


def image_data_digest(spec: DataSpec) -> str:
    """sha256 over the images and tables that `spec` names, with their roles."""
    return digest_by_role(spec, lambda path: image_digest(path, spec.image, spec.label, spec.encoding))


def _load(spec: DataSpec, mode: str) -> tuple[list[str], dict[str, list[Record]], list[str]]:
    """Labels, the three parts, and notes on what was converted, dropped or cut."""
    check_fractions(spec)
    changes: Counter[str] = Counter()
    paths = {"train": spec.path, "validation": spec.validation, "test": spec.test}
    read = {
        part: list(_records(read_images(resolve(path), spec.image, spec.label, encoding=spec.encoding), mode, changes))
        for part, path in paths.items()
        if path is not None
    }
    train = read.pop("train")
    labels = labels_of(train, spec)
    for records in read.values():
        refuse_unseen(records, labels)
    splits = make_splits(spec, train, read, noun="image")
    converted = [f"{counted(count, 'image')}: {change}." for change, count in sorted(changes.items())]
    notes = [*converted, *splits.notes, *absent_labels(splits, labels)]
    return labels, {part: getattr(splits, part) for part in PARTS}, notes


def _records(rows: Sequence[ImageRow], mode: str, changes: Counter[str]) -> Iterator[Record]:
    """Every image decoded once, for the damaged ones and the repeats; Pillow decodes outside Python's lock."""

    def look(row: ImageRow) -> tuple[str, tuple[str, ...]]:
        decoded = decode(row, mode)
        return decoded.key(), decoded.changes

    with ThreadPoolExecutor() as pool:
        for row, (key, changed) in zip(rows, pool.map(look, rows), strict=True):
            changes.update(changed)
            yield Record(key, row.label, row.label, row.where, row)
