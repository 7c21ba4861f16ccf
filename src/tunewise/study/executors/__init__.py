"""Where runs are done: in this process, in processes of one thread each, or as Ray tasks."""

from __future__ import annotations

from tunewise.device import gpus
from tunewise.spec import ExecutionOptions
from tunewise.store.folders import RunStore
from tunewise.study.executors.base import Executor
from tunewise.study.executors.processes import ProcessExecutor
from tunewise.study.executors.ray import RayExecutor
from tunewise.study.executors.serial import SerialExecutor
from tunewise.training.events import Listener


def with_default_jobs(options: ExecutionOptions) -> ExecutionOptions:
    """The options with a process for each GPU where there are several and nothing else is asked for."""
    if options.jobs is None and options.executor in (None, "processes") and (count := len(gpus())) > 1:
        return options.model_copy(update={"jobs": count})
    return options


def make_executor(options: ExecutionOptions, store: RunStore, listener: Listener) -> Executor:
    """The executor that the options name. Raises `SpecError` where Ray is asked for and not installed."""
    match options.executor_name:
        case "serial":
            return SerialExecutor(store, listener)
        case "processes":
            return ProcessExecutor(store, listener, options.jobs or 1, gpus())
        case "ray":
            return RayExecutor(store, listener, options.ray)
