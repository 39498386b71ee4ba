"""The cluster's Jobs API, through Ray's SDK, with its failures in one sentence.

Ray reads the token itself (``RAY_AUTH_MODE=token`` with ``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH`` or
``~/.ray/auth_token``); it goes into one header and into no message of ours.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cellfoundry.cluster.errors import ClusterError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ANSWER_WITHIN_S = 10.0
# Between SIGTERM and SIGKILL of a job that is stopped. Ray's 3 s are too few to save a checkpoint.
STOP_WITHIN_S = 60
JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def dashboard_address(given: str | None) -> str:
    """URL of the dashboard: the given one, that of RAY_API_SERVER_ADDRESS or RAY_ADDRESS, or this machine's.

    ``auto`` is this machine's too: Ray means by it a cluster that this machine belongs to.

    Raises:
        ClusterError: not an http(s) address.
    """
    named = given or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "auto"
    if named == "auto":
        named = DEFAULT_ADDRESS
    address = (named if "://" in named else f"http://{named}").rstrip("/")
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and parts.hostname is not None and parts.port != 0
    except ValueError:  # a port that is no number
        usable = False
    if not usable or parts.username is not None:
        raise ClusterError(
            f"the address {_without_credentials(address)} is not that of a Ray dashboard: give http(s)://HOST:PORT, "
            f"such as {DEFAULT_ADDRESS}."
        )
    return address


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches ``address``, a URL."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Cluster:
    """Jobs of one cluster."""

    def __init__(self, address: str | None = None, insecure: bool = False) -> None:
        """Connect to the dashboard at ``address`` (None: see ``dashboard_address``).

        Args:
            address: http(s) URL; without a scheme it is http.
            insecure: also speak to a cluster that does not check tokens where it is on another machine, or where a
                token would be sent to it.

        Raises:
            ClusterError: nothing answers, or no Ray dashboard; no token, a wrong one, or not ``insecure`` and a
                cluster that needs it; the extra ``cluster`` is not installed.
        """
        _check_installed()
        self.address = dashboard_address(address)
        if not (insecure or _sends_token() or is_loopback(self.address)):
            raise ClusterError(
                f"{self.address} is on another machine and no token would be sent to it, so anyone who reaches it can "
                "run code there: set RAY_AUTH_MODE=token on the cluster and here, or accept it with --insecure."
            )
        # On loopback too: what listens there may be another user's.
        if not self._asks_for_token() and _sends_token() and not insecure:
            raise ClusterError(
                f"{self.address} asks for no token, so it may not be your cluster and would still be sent yours: name "
                "another address, set RAY_AUTH_MODE=token on the cluster, or accept it with --insecure."
            )
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # Ray prefers this variable to its argument
        os.environ["RAY_RUNTIME_ENV_IGNORE_GITIGNORE"] = "1"  # an input's own .gitignore must not thin it out
        with self._sentences():
            from ray.job_submission import JobSubmissionClient

            for handler in logging.getLogger("ray").handlers:
                handler.setLevel(logging.WARNING)  # the SDK tells of each upload
            self._client = JobSubmissionClient(self.address)

    def submit(
        self, job_id: str, entrypoint: str, folder: Path, num_gpus: float | None, metadata: Mapping[str, str]
    ) -> None:
        """Send ``folder`` and run ``entrypoint``, a shell line, in it.

        ``num_gpus`` are reserved for the entrypoint's own process, not for the tasks and workers that it starts.
        """
        environment = {
            "working_dir": str(folder),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WITHIN_S)},
        }
        with self._sentences():
            self._client.submit_job(
                submission_id=job_id,
                entrypoint=entrypoint,
                runtime_env=environment,
                entrypoint_num_gpus=num_gpus,
                metadata=dict(metadata),
            )

    def jobs(self) -> list[JobDetails]:
        """All submitted jobs, the oldest first."""
        with self._sentences():
            submitted = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(submitted, key=lambda job: job.start_time or 0)

    def job(self, job_id: str) -> JobDetails:
        """One job; ClusterError where the cluster has none of this name."""
        with self._sentences(job_id):
            return self._client.get_job_info(job_id)

    def logs(self, job_id: str) -> str:
        """What the job has written so far."""
        with self._sentences(job_id):
            return str(self._client.get_job_logs(job_id))

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        """The log from its beginning, piece by piece, until the job ends or the connection does (which raises)."""
        async for piece in self._client.tail_job_logs(job_id):
            yield piece

    def stop(self, job_id: str) -> bool:
        """Ask the job to end; False where it had ended before."""
        with self._sentences(job_id):
            return bool(self._client.stop_job(job_id))

    def _asks_for_token(self) -> bool:
        import requests

        try:
            answer = requests.get(
                f"{self.address}/api/version", timeout=ANSWER_WITHIN_S, allow_redirects=False
            )
        except (requests.RequestException, UnicodeError) as error:  # a host with an empty label is no name
            raise self._unreachable() from error
        if answer.status_code in (401, 403):
            return True
        try:
            answer.json()["ray_version"]
        except (ValueError, KeyError, TypeError):
            raise ClusterError(
                f"what answers at {self.address} is not a Ray dashboard: give the address that `ray start --head` "
                "prints (port 8265 unless set otherwise)."
            ) from None
        return False

    @contextmanager
    def _sentences(self, job_id: str | None = None) -> Iterator[None]:
        """Turn what the SDK raises into one sentence each."""
        import requests
        from ray.exceptions import AuthenticationError

        if job_id is not None and not JOB_ID.fullmatch(job_id):
            raise self._no_job(job_id)
        try:
            yield
        except AuthenticationError as error:
            raise ClusterError(self._refused(str(error))) from None
        except (requests.RequestException, ConnectionError) as error:
            raise self._unreachable() from error
        except RuntimeError as error:
            if job_id is not None and "status code 404" in str(error):
                raise self._no_job(job_id) from error
            reason = str(error).strip().splitlines()[-1].rstrip(".")
            raise ClusterError(f"the cluster at {self.address} refuses the request ({reason}).") from error

    def _unreachable(self) -> ClusterError:
        return ClusterError(
            f"nothing answers at {self.address}: start the cluster (`ray start --head`), or name its dashboard with "
            "--address."
        )

    def _no_job(self, job_id: str) -> ClusterError:
        return ClusterError(f"{self.address} has no job {job_id}: `cellfoundry jobs list` shows all.")

    def _refused(self, reason: str) -> str:
        where_from = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
        if not _sends_token():
            return f"{self.address} asks for a token: set RAY_AUTH_MODE=token and give the token in {where_from}."
        if reason.startswith("Authentication failed"):
            return f"{self.address} refuses the token: put the cluster's own into {where_from}."
        return f"RAY_AUTH_MODE is token, but there is no token: give the cluster's in {where_from}."


def ended(job: JobDetails) -> bool:
    """Whether a job has succeeded, failed or been stopped."""
    return bool(job.status.is_terminal())


def exit_code(job: Any) -> int:
    """What a job that ended comes to: its process's code, 128 + N for signal N, 143 where it was stopped, 1 where it
    failed before it started.
    """
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        return 143
    code = job.driver_exit_code
    return 1 if not code else int(code) if code > 0 else 128 - int(code)


def _check_installed() -> None:
    try:
        import aiohttp  # noqa: F401 by which Ray's SDK streams logs
    except ImportError:
        raise ClusterError(
            "Ray's Jobs API needs packages that are not installed: pip install 'cellfoundry[cluster]'."
        ) from None


def _sends_token() -> bool:
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def _without_credentials(address: str) -> str:
    return re.sub(r"//[^/]*@", "//", address)  # a password may hold an @
