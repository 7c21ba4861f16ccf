"""The list of runs at the end of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from tunewise import number_format as numbers
from tunewise.report.rows import metric_name
from tunewise.store.records import RunRecord


def run_columns(metric: str, share: bool = True) -> list[str]:
    """Titles of the numbers of a run."""
    unit = ", %" * share
    return [f"test {metric_name(metric)}{unit}", "test loss", "train loss", "gap", "epoch kept", "training time"]


def run_numbers(record: RunRecord, metric: str) -> list[str]:
    """The numbers of a run, as many as `run_columns`."""
    results = record.results
    if results is None:
        return [*[numbers.MISSING] * 5, numbers.seconds(record.seconds)]
    main = results.test.metrics.get(metric)
    return [
        numbers.MISSING if main is None else numbers.score(main, metric not in results.lower_is_better),
        numbers.nats(results.test.loss),
        numbers.nats(results.train.loss),
        numbers.nats(results.gap),
        str(results.selected_epoch),
        numbers.seconds(record.seconds),
    ]


def run_links(records: Sequence[RunRecord], folders: Mapping[str, str]) -> dict[str, str]:
    """Relative addresses of the runs' folders, without scheme or host; empty where a folder is unknown."""
    links = {}
    for record in records:
        folder = folders.get(record.id, "")
        parts = [part for part in folder.replace("\\", "/").split("/") if part not in ("", ".")]
        links[record.id] = "./" + quote("/".join(parts)) + "/" if folder else ""
    return links
