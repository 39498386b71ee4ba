"""Watch a job: its log as it grows, and what it came to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cellfoundry.cluster.connection import Cluster, ended
from cellfoundry.cluster.errors import ClusterError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

TRIES = 10
BETWEEN_TRIES_S = 1.0
STATUS_EVERY_S = 0.3


class Follower:
    """The log of one job, each character once, however often watching is interrupted and taken up again."""

    def __init__(self, cluster: Cluster, job_id: str, write: Callable[[str], None], shown: int = 0) -> None:
        """Args:
        cluster: that runs the job.
        job_id: of the job.
        write: takes what is new.
        shown: leading characters of the log that were shown before.
        """
        self._cluster = cluster
        self._job_id = job_id
        self._write = write
        self._shown = shown

    def run(self) -> JobDetails:
        """Show the log until the job ends; the ended job.

        Raises:
            ClusterError: the connection broke and did not come back; the job goes on.
            KeyboardInterrupt: Ctrl-C; ``run`` may be called again.
        """
        failures = 0
        while True:
            before = self._shown
            broken = self._tail_until_closed()
            try:
                job = self._cluster.job(self._job_id)
                if ended(job):
                    return job
            except ClusterError:
                broken = True
            failures = failures + 1 if broken and self._shown == before else 0
            if failures == TRIES:
                raise self._lost()
            time.sleep(BETWEEN_TRIES_S if broken else STATUS_EVERY_S)

    def _tail_until_closed(self) -> bool:
        """Whether the connection broke (True) or was closed as it is when a job ends."""
        import aiohttp

        try:
            asyncio.run(self._tail())
        except (aiohttp.ClientError, OSError, RuntimeError):
            return True
        return False

    async def _tail(self) -> None:
        position = 0
        async for piece in self._cluster.tail(self._job_id):
            new = piece[max(0, self._shown - position) :]
            position += len(piece)
            if new:
                self._write(new)
                self._shown = position

    def _lost(self) -> ClusterError:
        return ClusterError(
            f"the connection to {self._cluster.address} broke and does not come back; if the cluster runs, job "
            f"{self._job_id} goes on: watch it again with `cellfoundry jobs logs {self._job_id} --follow`."
        )


def wait_until_ended(cluster: Cluster, job_id: str) -> JobDetails:
    """The job once it has succeeded, failed or been stopped."""
    while not ended(job := cluster.job(job_id)):
        time.sleep(STATUS_EVERY_S)
    return job
