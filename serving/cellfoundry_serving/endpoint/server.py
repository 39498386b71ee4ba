"""Runs the endpoint: ``serve`` blocks until SIGTERM or Ctrl-C, ``running`` is a context manager."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn

from cellfoundry_serving.endpoint.api_keys import ApiKeys
from cellfoundry_serving.endpoint.app import create_app
from cellfoundry_serving.endpoint.http_protocol import HttpProtocol
from cellfoundry_serving.endpoint.journal import open_journal
from cellfoundry_serving.endpoint.last_requests import complete_no_more, taken_in
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.results import check_public_url
from cellfoundry_serving.endpoint.service import Service
from cellfoundry_serving.endpoint.sources import FolderSource, OpenedSource, named_folder
from cellfoundry_serving.endpoint.v2_grpc.server import GrpcServer
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError


def serve(
    models: Sequence[str],
    engine: str = "auto",
    provider: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    grpc_port: int | None = None,
    limits: Limits | None = None,
    api_keys: Path | None = None,
    versions: int = 1,
    allow_load: bool = False,
    drain_s: float = 0,
    public_url: str | None = None,
) -> None:
    """Serves models until SIGTERM or Ctrl-C, then answers what it has accepted and returns.

    A second signal ends the process at once. SIGHUP looks for new versions of all models.

    Args:
        models: ``DIR`` or ``NAME=DIR``, the default model first; see ``FolderSource``.
        engine: see ``open_engine``; so is ``provider``.
        provider: of ONNX Runtime.
        host: an IP address; one that is not loopback needs ``api_keys``.
        port: 0 takes a free one.
        grpc_port: of gRPC, on the same host; 0 takes a free one, None leaves gRPC off.
        limits: of requests.
        api_keys: a file, see ``ApiKeys.read``.
        versions: of a model, the newest so many are served.
        allow_load: clients may load and unload models.
        drain_s: seconds between SIGTERM, from which readiness fails, and closing the port.
        public_url: where clients reach it, behind a proxy say, for links in answers.

    Raises:
        ServingError: a host that is not loopback without keys, keys that cannot be read, a port in use, an address
            that is none, or an engine that cannot run.
        ModelError: a damaged model directory.
    """
    public_url = check_public_url(public_url)
    keys = ApiKeys.read(api_keys) if api_keys else None
    public = keys is not None
    with listening(host, port, public) as listener:
        if grpc_port:  # said before the models are loaded; gRPC itself takes its port after that
            with listening(host, grpc_port, public, "--grpc-port"):
                pass
        opens = functools.partial(open_engine, engine=engine, provider=provider)
        sources = [FolderSource(name, folder, opens, versions) for name, folder in map(named_folder, models)]
        service = Service(sources, limits or Limits(), open_journal())
        address = str(listen_address(host, public))
        grpc = None if grpc_port is None else GrpcServer(service, keys, allow_load, address, grpc_port)
        server = make_server(service, keys, allow_load, grpc, drain_s, public_url)
        url = f"http://{host}:{listener.getsockname()[1]}"
        server.when_ready = functools.partial(announce, service, url, grpc)
        # uvicorn raises the signal again once it has drained; stopping as asked is no failure.
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                server.run(sockets=[listener])
        finally:
            signal.signal(signal.SIGTERM, before)
        check_started(server)


@contextmanager
def running(
    model: str | Path | Engine,
    engine: str = "auto",
    *,
    limits: Limits | None = None,
    keys: ApiKeys | None = None,
) -> Iterator[str]:
    """The endpoint in a thread of this process on a free loopback port; yields its URL once it is ready."""
    runner = model if isinstance(model, Engine) else open_engine(model, engine)
    with running_service(Service([OpenedSource(runner)], limits or Limits()), keys) as url:
        yield url


@contextmanager
def running_service(service: Service, keys: ApiKeys | None = None, allow_load: bool = False) -> Iterator[str]:
    """As ``running``, of any models."""
    with _running_thread(service, keys, allow_load, None) as url:
        yield url


@contextmanager
def running_with_grpc(
    service: Service, keys: ApiKeys | None = None, allow_load: bool = False
) -> Iterator[tuple[str, str]]:
    """As ``running_service``, over gRPC too; yields the URL and gRPC's address HOST:PORT."""
    grpc = GrpcServer(service, keys, allow_load, "127.0.0.1", 0)
    with _running_thread(service, keys, allow_load, grpc) as url:
        yield url, grpc.address


@contextmanager
def _running_thread(
    service: Service, keys: ApiKeys | None, allow_load: bool, grpc: GrpcServer | None
) -> Iterator[str]:
    with listening("127.0.0.1", 0) as listener:
        server = make_server(service, keys, allow_load, grpc)
        ready = threading.Event()
        server.when_ready = ready.set
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="endpoint")
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            while thread.is_alive() and not ready.wait(0.005):
                pass
            check_started(server)
            yield url
        finally:
            server.should_exit = True
            thread.join()


SAME_SIGNAL_S = 0.5
"""Signals within this time are one: Ctrl-C goes to a whole group, and a wrapper in it may pass it on once more."""


class Server(uvicorn.Server):
    """uvicorn with gRPC beside it, which says when the model has warmed up, and fails readiness before closing.

    Args:
        config: of uvicorn.
        service: told when the server drains.
        grpc: serves beside it.
        drain_s: seconds between SIGTERM and closing the ports, for load balancers to notice; Ctrl-C has none.
    """

    when_ready: Callable[[], None] | None = None

    def __init__(
        self, config: uvicorn.Config, service: Service, grpc: GrpcServer | None, drain_s: float
    ) -> None:
        super().__init__(config)
        self._service = service
        self._grpc = grpc
        self._drain_s = drain_s
        self._told_at: float | None = None
        self._closes_at = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, whose newer versions exit the process where the app does not start.

        ServingError where gRPC's port is not free.
        """
        if self._grpc is not None:
            self._grpc.bind()
        try:
            await super().startup(sockets)
        except SystemExit:
            self.should_exit = True
        if self.started and self._grpc is not None:
            await self._grpc.start()
        if self.started and self.when_ready is not None:
            self.when_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, once all that came before has been accepted and read; waits for gRPC's answers too."""
        for listener in sockets or []:
            complete_no_more(listener)
        await taken_in()
        for server in self.servers:
            server.close()
        await taken_in()
        if self._grpc is not None:
            stopping = asyncio.create_task(self._grpc.stop())
            self.server_state.tasks.add(stopping)  # which uvicorn waits for
            stopping.add_done_callback(self.server_state.tasks.discard)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, one that comes later ends the process at once."""
        now = time.monotonic()
        if self._told_at is None:
            self._told_at = now
            self._service.draining = True
            self._closes_at = now + (self._drain_s if sig == signal.SIGTERM else 0)
            super().handle_exit(sig, frame)
        elif now > self._told_at + SAME_SIGNAL_S:
            os._exit(128 + sig)  # not by the signal: the first process of a container does not die of it

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to stop listening."""
        return await super().on_tick(counter) and time.monotonic() >= self._closes_at


def announce(service: Service, url: str, grpc: GrpcServer | None) -> None:
    """Says on standard output that requests are answered, at which addresses and by what; SIGHUP counts from here."""
    addresses = url if grpc is None else f"{url} and grpc://{grpc.address}"
    served = "; ".join(f"{model.name} {model.version}: {model.engine.why}" for model in service.models.all())
    # Before the line is read: a SIGHUP that nobody handles would end the process.
    if hasattr(signal, "SIGHUP"):  # of POSIX systems
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, service.models.load_all_soon)
    print(f"Serving on {addresses} ({served}); stop with Ctrl-C.", flush=True)


def make_server(
    service: Service,
    keys: ApiKeys | None,
    allow_load: bool,
    grpc: GrpcServer | None,
    drain_s: float = 0,
    public_url: str | None = None,
) -> Server:
    """uvicorn around the app, and gRPC; it drains on shutdown."""
    app = create_app(service, keys, allow_load, public_url=public_url)
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        log_config=None,
        log_level="warning",
        access_log=False,
        ws="none",
        server_header=False,
    )
    return Server(config, service, grpc, drain_s)


def check_started(server: Server) -> None:
    """ServingError where the model failed on its first cells, which uvicorn has logged."""
    if not server.started:
        raise ServingError(
            "The endpoint did not start: the model failed on its first cells; the log above says why."
        )


@contextmanager
def listening(host: str, port: int, public: bool = False, option: str = "--port") -> Iterator[socket.socket]:
    """A listening socket; ServingError for an address not allowed (see ``listen_address``) or a port in use."""
    address = listen_address(host, public)
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((str(address), port))
        except OSError as error:
            raise ServingError(
                f"Port {port} on {host} is not free ({error.strerror}); choose another with {option}."
            ) from error
        listener.listen(2048)
        yield listener


def listen_address(host: str, public: bool) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """``host`` as an address; ServingError unless it is a loopback one, or any with ``public``."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError as error:
        raise ServingError(f"Host {host!r} is no IP address; give one, such as 127.0.0.1.") from error
    if not address.is_loopback and not public:
        raise ServingError(
            f"Host {host!r} is not loopback, so others could ask too; give --api-keys FILE, or use 127.0.0.1."
        )
    return address
