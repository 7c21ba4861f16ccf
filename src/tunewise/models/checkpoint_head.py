"""The task head that a checkpoint brings along: used where its classes are those of the data, else drawn anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from tunewise.models.head import Head, head_modules
from tunewise.text_format import join_names


@dataclass(frozen=True)
class CheckpointHead:
    """A head in a checkpoint, and what becomes of it."""

    order: tuple[int, ...] | None
    """For each class of the data its row in the checkpoint's head; None for a head of other classes."""
    note: str
    """In words, for the record of a run."""

    def apply(self, model: PreTrainedModel, seed: int) -> None:
        """Put the rows of a loaded head into the order of the data, or draw the whole head anew from `seed`."""
        modules = [model.get_submodule(name) for name in head_modules(model)]
        if self.order is None:
            torch.manual_seed(seed)
            for module in modules:
                for part in module.modules():
                    _draw(model, part)
            return
        outputs = [
            m for module in modules for m in module.modules() if getattr(m, "out_features", 0) == len(self.order)
        ]
        rows = list(self.order)
        with torch.no_grad():
            for parameter in outputs[-1].parameters():
                parameter.copy_(parameter[rows].clone())


def find_checkpoint_head(config: PretrainedConfig, head: Head) -> CheckpointHead:
    """What becomes of a checkpoint's task head, of which all tensors have the names and places that `head` needs: a
    head for another task has them, too, and so has that of a class that transformers does not know."""
    ending = head.auto_class.removeprefix("AutoModel")
    known = [name for name in config.architectures or () if hasattr(transformers, name)]
    if known and not any(name.endswith(ending) for name in known):
        return CheckpointHead(
            None, f"The checkpoint's own task head was replaced by a new one: it is that of a {known[0]}."
        )
    if not head.labels or head.problem_type is None:
        return CheckpointHead(None, "The checkpoint's own task head was replaced by a new one: its output has no name.")
    named: Mapping[int, str] = config.id2label or {}  # type: ignore[assignment]
    names = [str(named[i]) for i in sorted(named)]
    order = _matching_rows(names, head.labels)
    if order is None:
        return CheckpointHead(
            None,
            f"The checkpoint's own task head was replaced by a new one: its classes are {join_names(names)}, those of "
            f"the data {join_names(list(head.labels))}.",
        )
    match = "its classes match by name"
    if all(name.startswith("LABEL_") for name in names):
        match = f"its classes have numbers for names ({names[0]}, ...), which are taken for those of the data"
    return CheckpointHead(order, f"Every run starts from the checkpoint's own task head; {match}.")


def _matching_rows(names: Sequence[str], labels: Sequence[str]) -> tuple[int, ...] | None:
    """For each label the place of its name, upper and lower case alike; transformers' LABEL_3 is a class named 3."""
    places = {name.casefold().removeprefix("label_"): place for place, name in enumerate(names)}
    wanted = [label.casefold().removeprefix("label_") for label in labels]
    if len(places) != len(names) or len(set(wanted)) != len(wanted) or set(places) != set(wanted):
        return None
    return tuple(places[label] for label in wanted)


def _draw(model: PreTrainedModel, module: nn.Module) -> None:
    """The initial values that transformers gives a module; without `_is_hf_initialized` it takes them for loaded."""
    for tensor in (module, *module.parameters(recurse=False), *module.buffers(recurse=False)):
        if hasattr(tensor, "_is_hf_initialized"):
            del tensor._is_hf_initialized
    model._init_weights(module)
