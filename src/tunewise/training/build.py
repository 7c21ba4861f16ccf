"""The model of a run: the base model with its method, and its parameter counts for the record."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import Tensor, nn

from tunewise.catalog import Chain, get_method
from tunewise.methods.attach import attach
from tunewise.methods.attachment import attachment, trainable_parameters
from tunewise.methods.draws import sample
from tunewise.models.coverage import measure_coverage
from tunewise.models.quantization import count_weights
from tunewise.spec import MethodSpec, RunSpec
from tunewise.store.records import ModelFacts
from tunewise.tasks.contract import Task
from tunewise.training.linearised import frozen_copy, linearise

ONE_STEP_SAMPLES = 128
"""Training examples for the gradient that LoRA-One starts from."""


def build_model(spec: RunSpec, task: Task, fold: str = "auto") -> nn.Module:
    """The base model with the method of the run; linearised at W0 where the spec asks for it. `fold` as in `attach`."""
    options: dict[str, Any] = {"fold": fold}
    if get_method(spec.method.name).start == "gradient":
        options["batches"] = one_step_batches(spec, task)
    if spec.method.name == "peft:adalora":  # its schedule of ranks is laid out over the run
        options["peft_options"] = {"total_step": total_steps(spec, len(task.train))}
    base = task.load_model(spec.seed)
    if not spec.training.linearised:
        return attach_method(base, spec.method, seed=spec.seed, **options)
    frozen = frozen_copy(base, own_values=not get_method(spec.method.name).adapts)
    model = attach_method(base, spec.method, seed=spec.seed, **{**options, "fold": "never"})
    linearise(model, frozen)
    return model


def attach_method(model: nn.Module, method: MethodSpec, *, seed: int, **options: Any) -> nn.Module:
    """`attach` a method as its spec describes it."""
    return attach(
        model,
        method.name,
        rank=method.rank if get_method(method.name).takes_rank else None,
        alpha=method.alpha,
        targets=method.targets,
        layers=method.layers,
        dropout=method.lora_dropout,
        seed=seed,
        chain=chain_of(method) if method.links is not None or method.restart_every is not None else None,
        lora_a_init=method.lora_a_init,
        **options,
    )


def total_steps(spec: RunSpec, examples: int) -> int:
    """Optimizer steps of the whole run."""
    return spec.training.steps(examples)


def chain_of(method: MethodSpec) -> Chain | None:
    """The chain of a method, with the links or the epochs of a link from the spec; None for a method without one."""
    if method.restart_every is not None:
        return Chain(every=method.restart_every, unit="epoch")
    return Chain(links=method.links) if method.links is not None else get_method(method.name).chain


def one_step_batches(spec: RunSpec, task: Task, samples: int = ONE_STEP_SAMPLES) -> list[dict[str, Tensor]]:
    """`samples` training examples, drawn by the run's seed, in batches: for the gradient that LoRA-One starts from."""
    size = spec.training.batch_size
    rows = sample(task.train, samples, spec.seed, "one-step gradient")
    return [task.collate(rows[i : i + size]) for i in range(0, len(rows), size)]


def count_parameters(model: nn.Module) -> ModelFacts:
    """Parameter counts: all, and what the optimizer updates in the adapter and in the head."""
    done = attachment(model)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    trainable = trainable_parameters(model)
    head = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and _is_head(n, done.head))
    frozen_copies = sum(count_weights(p) for n, p in model.named_parameters() if ".original_module." in n)
    prefix = getattr(getattr(model, "base_model", None), "prefix", None)
    adapter_own = sum(p.numel() for n, p in model.named_parameters() if isinstance(prefix, str) and f".{prefix}" in n)
    return ModelFacts(
        parameters=sum(count_weights(p) for p in model.parameters()) - frozen_copies - adapter_own,
        trainable=trainable,
        adapter=trainable - head,
        head=head,
        layers=[target.name for target in done.targets],
        coverage=measure_coverage(base, done.targets) if done.targets else None,
    )


def _is_head(name: str, head: tuple[str, ...]) -> bool:
    return name.split(".")[0] in head or ".modules_to_save." in name
