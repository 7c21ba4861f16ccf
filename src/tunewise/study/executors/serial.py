"""One run at a time in this process, on all of its threads."""

from __future__ import annotations

from types import TracebackType

from tunewise.study.executors.base import Executor, Job, JobEnd, do_job


class SerialExecutor(Executor):
    """Does a job while it is waited for."""

    capacity = 1
    _job: Job | None = None

    def start(self, job: Job) -> None:
        self._job = job

    def wait(self) -> JobEnd | None:
        job, self._job = self._job, None
        if job is None:
            return None
        try:
            do_job(job, self.store, self.listener)
        except Exception as error:  # noqa: BLE001 - the loop decides what an error means to the study
            return JobEnd(job.run.id, error)
        return JobEnd(job.run.id)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._job = None
