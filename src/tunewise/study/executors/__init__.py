"""Where runs are done: in this process, in processes of one thread each, or as Ray tasks."""

from __future__ import annotations

from tunewise.spec import ExecutionOptions
from tunewise.store.folders import RunStore
from tunewise.study.executors.base import Executor
from tunewise.study.executors.processes import ProcessExecutor
from tunewise.study.executors.ray import RayExecutor
from tunewise.study.executors.serial import SerialExecutor
from tunewise.training.events import Listener


def make_executor(options: ExecutionOptions, store: RunStore, listener: Listener) -> Executor:
    """The executor that the options name. Raises `SpecError` where Ray is asked for and not installed."""
    match options.executor_name:
        case "serial":
            return SerialExecutor(store, listener)
        case "processes":
            return ProcessExecutor(store, listener, options.jobs or 1)
        case "ray":
            return RayExecutor(store, listener, options.ray)
