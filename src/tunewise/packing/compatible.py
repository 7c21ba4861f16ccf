"""Which runs can share one frozen backbone, and why others can't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunewise.catalog import get_method
from tunewise.spec import RunSpec, content_hash


@dataclass(frozen=True)
class Pack:
    """Runs that are trained together; one alone is a run by itself, and `why` says what keeps it so."""

    runs: tuple[RunSpec, ...]
    why: str | None = None


def not_packable(spec: RunSpec) -> str | None:
    """Why a run must be trained by itself, in words; None where it need not."""
    row = get_method(spec.method.name)
    if row.trained == "all":
        return "trains the backbone"
    if row.trained == "head":
        return "needs no backward pass through the backbone, and is cheaper by itself"
    if row.passed_through:
        return "is PEFT's own forward"
    if spec.training.linearised:
        return "is linearised"
    return None


def kinship(spec: RunSpec) -> str:
    """Equal for runs that can be packed: one model, one data set, one training plan but for the rate, one set of
    layers. Method, rank, scale, rate, weight decay and seed are each run's own."""
    training = spec.training.model_dump(exclude={"learning_rate", "weight_decay", "save_every"})
    return content_hash(
        {
            "task": spec.task,
            "model": spec.model.model_dump(mode="json"),
            "data": spec.data.model_dump(mode="json"),
            "training": training,
            "where": [spec.method.targets, spec.method.layers],
            "metric": spec.metric,
        }
    )


def packs(specs: Sequence[RunSpec], most: int) -> list[Pack]:
    """The runs in packs of at most `most`, in the order of each pack's first run."""
    found: list[list[RunSpec]] = []
    alone: dict[int, str] = {}
    open_packs: dict[str, list[RunSpec]] = {}
    for spec in specs:
        why = not_packable(spec)
        kin = kinship(spec)
        pack = open_packs.get(kin)
        if why is not None:
            alone[len(found)] = why
            found.append([spec])
        elif pack is None or len(pack) >= most:
            open_packs[kin] = [spec]
            found.append(open_packs[kin])
        else:
            pack.append(spec)
    return [Pack(tuple(runs), alone.get(i)) for i, runs in enumerate(found)]
