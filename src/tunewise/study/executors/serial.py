"""One run at a time in this process, on all of its threads."""

from __future__ import annotations

from tunewise.study.executors.base import Executor, Job, JobEnd, do_job


class SerialExecutor(Executor):
    """Does a job while it is waited for."""

    capacity = 1
    _job: Job | None = None

    def start(self, job: Job) -> None:
        self._job = job

    def wait(self) -> JobEnd | None:
        job, self._job = self._job, None
        return None if job is None else do_job(job, self.store, self.listener)

    def close(self, error: BaseException | None) -> None:
        self._job = None
