"""From an encoded image to the input of a model, by the model's own image processor.

Resizing and cropping give whole numbers from 0 to 255, which are cached; rescaling and normalising are done on batches.
Both together are checked against the processor itself, and where they differ its own output is cached instead.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from transformers import AutoImageProcessor, ViTImageProcessorPil

from tunewise.errors import DataError, ModelError, SpecError
from tunewise.models.load import load_config, model_folder, refusal
from tunewise.spec import ModelSpec
from tunewise.tasks.image_files import ImageRow

ImageProcessor = Any  # of transformers; which attributes it has differs from model to model

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_ORIENTATION = 274  # the EXIF tag


def decode(row: ImageRow, mode: str = "RGB") -> Image.Image:
    """The image of a row, turned as its EXIF says and converted to `mode`, "RGB" or "L". Raises `DataError`."""
    content = row.content()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, and of damaged EXIF in sound ones
            image = Image.open(io.BytesIO(content))
            image.load()
            turned = ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image
            return turned if turned.mode == mode else _converted(turned, mode)
    except UnidentifiedImageError:
        fault = "no image that could be read"
    except Image.DecompressionBombError:
        fault = "far too large when decoded"
    except (OSError, ValueError, SyntaxError, EOFError, KeyError, TypeError, IndexError) as error:
        fault = f"a damaged image ({str(error).strip() or type(error).__name__})"
    raise DataError(f"{row.where}: {fault}; replace the image or remove the row")


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I;16"):  # sixteen bits a pixel: convert() would cut off all above 255
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}: pixels without a known range; save it with 8 or 16 bits a channel")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


def pixel_key(image: Image.Image) -> str:
    """Digest of size and pixels: equal for one image in two encodings without loss."""
    return f"{image.size}{hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()}"


class Pixels:
    """The image processor of a model at one `size`, (channels, height, width), for images of one `mode`."""

    def __init__(self, model: ModelSpec, image_size: int | None) -> None:
        self.notes: list[str] = []
        self.mode = "L" if _channels(model) == 1 else "RGB"
        self.is_checkpoints = image_size is None and _has_processor(model)
        """Whether the processor is the one of the checkpoint, unchanged."""
        self.processor = _resized(_processor(model, self.mode, self.notes), image_size, model)
        noise = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
        probe = Image.fromarray(noise).convert(self.mode)
        expected = self._run(probe)
        if self._run(probe.transpose(Image.Transpose.ROTATE_90)).shape != expected.shape:
            raise ModelError(f"model {model.path!r}: its image processor leaves images in different sizes")
        self.size: tuple[int, int, int] = expected.shape
        self.compact = True
        prepared = self.prepare(probe)
        error = (self.batch([prepared]) - torch.from_numpy(expected)).abs().max()
        self.compact = prepared.dtype == np.uint8 and float(error) <= 1e-5

    def prepare(self, image: Image.Image) -> NDArray[np.generic]:
        """What to cache of an image: (channels, height, width), uint8 where `compact`, else fp32."""
        if not self.compact:
            return self._run(image)
        output = self.processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
        values: NDArray[np.generic] = output["pixel_values"][0]
        return values

    def batch(self, prepared: list[NDArray[np.generic]]) -> Tensor:
        """The model's input from what `prepare` returned: (batch, channels, height, width), fp32."""
        values = torch.from_numpy(np.stack(prepared)).float()
        if not self.compact:
            return values
        if self.processor.do_rescale:
            values = values * self.processor.rescale_factor
        if self.processor.do_normalize:
            mean, deviation = (_per_channel(v) for v in (self.processor.image_mean, self.processor.image_std))
            values = (values - mean) / deviation
        return values

    def plain_code(self, source: str) -> tuple[str, str]:
        """The name of a class of transformers, and Python that makes the processor by it."""
        if self.is_checkpoints:
            return "AutoImageProcessor", f"AutoImageProcessor.from_pretrained({source}, backend='pil')"
        name = type(self.processor).__name__
        settings = json.loads(self.processor.to_json_string())
        return name, f"{name}(**{ {key: value for key, value in settings.items() if value is not None} })"

    def _run(self, image: Image.Image) -> NDArray[np.generic]:
        """The processor's own output for one image, fp32."""
        output = self.processor(image, return_tensors="np")
        if set(output) != {"pixel_values"} or np.ndim(output["pixel_values"]) != 4:
            raise ModelError(
                f"{type(self.processor).__name__} gives {', '.join(output)}; a model that takes one tensor "
                "pixel_values of shape (batch, channels, height, width) is needed"
            )
        values: NDArray[np.generic] = np.asarray(output["pixel_values"][0], dtype=np.float32)
        return values


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)


def _channels(model: ModelSpec) -> int:
    config = load_config(model)
    return int(getattr(getattr(config, "vision_config", config), "num_channels", 3) or 3)


def _processor(model: ModelSpec, mode: str, notes: list[str]) -> ImageProcessor:
    """The model's own processor, by Pillow, so that the same model and data give the same pixels on every machine."""
    if not _has_processor(model):
        return _default_processor(model, mode, notes)
    folder = model_folder(model)
    with refusal(model, "its image processor can't be loaded"):
        return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=model.trust_remote_code)


def _has_processor(model: ModelSpec) -> bool:
    return any((model_folder(model) / name).exists() for name in _PROCESSOR_FILES)


def _default_processor(model: ModelSpec, mode: str, notes: list[str]) -> ImageProcessor:
    config = load_config(model)
    own = getattr(getattr(config, "vision_config", config), "image_size", None)
    side = max(own) if isinstance(own, list | tuple) else own
    notes.append(
        "The model has no image processor (preprocessor_config.json): images are resized to a square (bicubic) and "
        "normalised with ImageNet's mean and deviation."
    )
    mean, deviation = (IMAGENET_MEAN, IMAGENET_STD) if mode == "RGB" else ((0.5,), (0.5,))
    return ViTImageProcessorPil(
        size={"height": side or 224, "width": side or 224},
        resample=Image.Resampling.BICUBIC,
        image_mean=list(mean),
        image_std=list(deviation),
    )


def _resized(processor: ImageProcessor, image_size: int | None, model: ModelSpec) -> ImageProcessor:
    """The processor for images of another side; a crop keeps its share of what was resized."""
    if image_size is None:
        return processor
    config = load_config(model)
    patch = getattr(getattr(config, "vision_config", config), "patch_size", None)
    if isinstance(patch, int) and image_size % patch:
        below = max(image_size // patch, 1) * patch
        raise SpecError(
            f"image_size {image_size} is no multiple of the model's patches of {patch} pixels; take {below} or "
            f"{below + patch}"
        )
    square = {"height": image_size, "width": image_size}
    size = {side: length for side, length in dict(processor.size or {}).items() if length}
    crop = dict(getattr(processor, "crop_size", None) or {}) if getattr(processor, "do_center_crop", False) else {}
    if crop.get("height"):
        resized = {side: round(image_size * length / crop["height"]) for side, length in size.items()}
        changed = {"size": resized, "crop_size": square}
    else:
        changed = {"size": {"shortest_edge": image_size} if "shortest_edge" in size else square}
    return type(processor)(**{**processor.to_dict(), **changed})
