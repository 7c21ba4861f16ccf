"""The head of a model: what a task asks for, and which modules it is.

The task head is everything outside the backbone that is not a language-model head: RoBERTa's `classifier`, DeBERTa's
`pooler` and `classifier`, Llama's `score`. BERT's pooler is inside its backbone and stays frozen with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Where a model has its backbone's parts side by side with the head (CLIP, SigLIP), the head goes by its name.
_HEAD_NAMES = ("classifier", "score", "head")
_INTERPOLATES = "interpolate_pos_encoding"


@dataclass(frozen=True)
class Head:
    """What a task asks of the end of a model."""

    auto_class: str
    """The transformers class that builds the model, by name: `AutoModelForSequenceClassification`."""
    description: str
    """For messages: `a classifier of texts`."""
    labels: tuple[str, ...] = ()
    """The classes in order; without them there is one output."""
    problem_type: str | None = None
    """Of transformers' configurations: `single_label_classification`, `regression`; None leaves the model's own."""
    pretrained: bool = False
    """Whether the head is the checkpoint's own and stays frozen, as that of a language model."""
    image_size: tuple[int, int] | None = None
    """(height, width) in pixels of the images that the model will be given; None for text."""

    @property
    def model_class(self) -> Any:
        """The transformers class that builds the model."""
        return getattr(transformers, self.auto_class)

    @property
    def outputs(self) -> int | None:
        """Outputs of the new head; None of a pretrained one."""
        if self.pretrained:
            return None
        return len(self.labels) if self.labels and self.problem_type else 1

    def config(self) -> dict[str, object]:
        """What to change in the configuration of the model."""
        if self.problem_type is None:
            return {}
        if not self.labels:
            return {"num_labels": 1, "problem_type": self.problem_type}
        return {
            "id2label": dict(enumerate(self.labels)),  # sets num_labels too
            "label2id": {label: i for i, label in enumerate(self.labels)},
            "problem_type": self.problem_type,  # whatever a checkpoint for another task says
        }


def head_modules(model: nn.Module) -> list[str]:
    """Names of the direct children of `model` that are its task head; empty where it has none."""
    prefix = getattr(model, "base_model_prefix", "")
    if not prefix:
        return []
    embeddings = getattr(model, "get_output_embeddings", None)
    output = embeddings() if embeddings else None
    return [
        name
        for name, child in model.named_children()
        if (name != prefix if hasattr(model, prefix) else name in _HEAD_NAMES)
        and any(True for _ in child.parameters())
        and (output is None or all(module is not output for module in child.modules()))
    ]


def prepare(model: nn.Module, head: Head) -> None:
    """Make the model take images of the head's size: hooks pass `interpolate_pos_encoding=True` to its modules, so that
    the parameters stay those of the checkpoint. Batch normalisation keeps its pretrained averages, which training would
    change and no adapter holds."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(_by_its_averages)
    if head.image_size is not None and needs_interpolation(model, head.image_size):
        for module in model.modules():
            if _INTERPOLATES in inspect.signature(module.forward).parameters:
                module.register_forward_pre_hook(_with_interpolation, with_kwargs=True)


def keep_in_fp32(model: nn.Module, names: Sequence[str]) -> None:
    """Hold the head, which is trained, in fp32 whatever the backbone's precision; hooks widen its inputs."""
    for name in names:
        module = model.get_submodule(name)
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in module.parameters()):
            module.float().register_forward_pre_hook(_widened)


def _widened(module: nn.Module, args: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)


def needs_interpolation(model: nn.Module, image_size: tuple[int, int]) -> bool:
    """Whether `model` takes images of this size only with `interpolate_pos_encoding=True`."""
    config = getattr(model.config, "vision_config", model.config)
    own = getattr(config, "image_size", None)
    if own is None or (tuple(own) if isinstance(own, list | tuple) else (own, own)) == image_size:
        return False
    return any(_INTERPOLATES in inspect.signature(module.forward).parameters for module in model.modules())


def _by_its_averages(module: nn.Module, args: tuple[object, ...]) -> None:
    module.training = False


def _with_interpolation(
    module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    call = inspect.signature(module.forward).bind_partial(*args, **kwargs)
    call.arguments[_INTERPOLATES] = True
    return call.args, call.kwargs
