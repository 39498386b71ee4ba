"""The same endpoint as replicas of a Ray Serve deployment, more of them the more requests wait."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cellfoundry_data.ray_cluster import ray_cluster
from cellfoundry_serving.endpoint.api_keys import ApiKeys
from cellfoundry_serving.endpoint.app import create_app
from cellfoundry_serving.endpoint.journal import open_journal
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.results import Results, check_public_url
from cellfoundry_serving.endpoint.server import listen_address
from cellfoundry_serving.endpoint.service import Service
from cellfoundry_serving.endpoint.sources import FolderSource, ModelSource, named_folder
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.errors import ServingError

APPLICATION = "cellfoundry"
MAX_ONGOING_REQUESTS = 1024
"""Of one replica: its batcher shares the engine's calls among them, and refuses what is too much with 429."""


class Scale(BaseModel):
    """How many replicas there are, and what each takes of the cluster.

    Attributes:
        min_replicas: that stay without requests.
        max_replicas: that there are at most.
        ongoing_requests: of a replica, above which another one is started.
        cpus: of a replica, which are also the threads that it computes with.
        gpus: of a replica.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = Field(default=1, gt=0)
    max_replicas: int = Field(default=4, gt=0)
    ongoing_requests: float = Field(default=16.0, gt=0)
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Scale:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas is above max_replicas; raise max_replicas.")
        return self


def serve_on_ray(
    models: Sequence[str],
    engine: str = "auto",
    provider: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    api_keys: Path | None = None,
    versions: int = 1,
    scale: Scale | None = None,
    public_url: str | None = None,
) -> None:
    """As ``server.serve``, on the cluster of RAY_ADDRESS or a local one, until SIGTERM or Ctrl-C.

    Folders of models must be where the replicas run. On a cluster that stays the application is taken away in the
    end; the requests in hand are answered.

    Raises:
        ServingError: as ``server.serve``; Ray Serve is not installed, or the application did not start.
        DataError: the cluster cannot be used.
    """
    keys = ApiKeys.read(api_keys) if api_keys else None
    public_url = check_public_url(public_url)
    listen_address(host, public=keys is not None)
    opens = functools.partial(open_engine, engine=engine, provider=provider)
    sources = [FolderSource(name, folder, opens, versions) for name, folder in map(named_folder, models)]
    for source in sources:
        source.versions()  # a wrong path is said here, not in a replica's log
    application = deployed(sources, limits or Limits(), keys, scale or Scale(), host, port, public_url)
    with ray_cluster(), application:
        stop = threading.Event()
        before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
        try:
            print(f"Serving on http://{host}:{port} by Ray Serve; stop with Ctrl-C.", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                stop.wait()
        finally:
            signal.signal(signal.SIGTERM, before)


class SharedResults:
    """``Results`` in an actor: the replica that is asked for a result is not always the one that made it."""

    def __init__(self) -> None:
        import ray

        self._actor: Any = ray.remote(num_cpus=0)(Results).remote()

    async def keep(self, content: bytes) -> str:
        """As ``Results.keep``."""
        name: str = await self._actor.keep.remote(content)
        return name

    async def get(self, name: str) -> bytes | None:
        """As ``Results.get``."""
        content: bytes | None = await self._actor.get.remote(name)
        return content


@contextmanager
def deployed(
    sources: Sequence[ModelSource],
    limits: Limits,
    keys: ApiKeys | None,
    scale: Scale,
    host: str,
    port: int,
    public_url: str | None = None,
) -> Iterator[None]:
    """The application on the connected cluster, at ``host`` and ``port`` of its nodes; ready inside."""
    try:
        from ray import serve
    except ImportError as error:
        raise ServingError("Ray Serve is not installed; install cellfoundry[ray-serve].") from error

    results = SharedResults()

    def build() -> FastAPI:  # where a replica runs
        service = Service(sources, limits, open_journal())
        return create_app(service, keys, results=results, sends_ids=False, public_url=public_url)

    deployment = serve.deployment(
        name="endpoint",
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        max_constructor_retry_count=1,  # a model that cannot be opened will not be at the third time
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        autoscaling_config={
            "min_replicas": scale.min_replicas,
            "max_replicas": scale.max_replicas,
            "target_ongoing_requests": scale.ongoing_requests,
        },
    )(serve.ingress(build)())
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    status = serve.status()
    if APPLICATION in status.applications:
        raise ServingError("Another `cellfoundry serve --ray` runs on this cluster; stop it first.")
    is_new = not status.proxies
    if not is_new:  # its port is the one that it was started with
        check_listens(host, port)
    serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port})
    try:
        start(functools.partial(serve.run, deployment.bind(), name=APPLICATION, route_prefix="/"))
        yield
    finally:
        if is_new:
            serve.shutdown()
        else:
            serve.delete(APPLICATION)


def check_listens(host: str, port: int) -> None:
    """ServingError where nothing listens: Ray Serve runs on the cluster already, at another address."""
    address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    reached = str(address) if not address.is_unspecified else "::1" if address.version == 6 else "127.0.0.1"
    try:
        socket.create_connection((reached, port), timeout=10).close()
    except OSError as error:
        raise ServingError(
            f"Ray Serve does not listen on {host}, port {port}: it runs on this cluster already with another; "
            "give that one, or end it with `serve shutdown`."
        ) from error


def start(run: Callable[[], Any]) -> None:
    """Runs the application; ServingError where its replicas fail, whose log says more."""
    try:
        run()
    except RuntimeError as error:
        raise ServingError(
            "Ray Serve could not start the endpoint; the replica's log on the cluster says why, and every node "
            "must have the models at the same path."
        ) from error
