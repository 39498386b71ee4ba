"""Runs the endpoint: ``serve`` blocks until SIGTERM or Ctrl-C, ``running`` is a context manager."""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from cellfoundry_serving.endpoint.api_keys import ApiKeys
from cellfoundry_serving.endpoint.app import create_app
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError


def serve(
    model_dir: str | Path,
    engine: str = "auto",
    provider: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    api_keys: Path | None = None,
) -> None:
    """Serves a model directory until SIGTERM or Ctrl-C, then answers what it has accepted and returns.

    Args:
        model_dir: a model directory or an export.
        engine: see ``open_engine``; so is ``provider``.
        provider: of ONNX Runtime.
        host: an IP address; one that is not loopback needs ``api_keys``.
        port: 0 takes a free one.
        limits: of requests.
        api_keys: a file, see ``ApiKeys.read``.

    Raises:
        ServingError: a host that is not loopback without keys, keys that cannot be read, a port in use, or an
            engine that cannot run.
        ModelError: a damaged model directory.
    """
    keys = ApiKeys.read(api_keys) if api_keys else None
    with listening(host, port, public=keys is not None) as listener:
        runner = open_engine(model_dir, engine, provider=provider)
        server = make_server(runner, limits, keys)
        url = f"http://{host}:{listener.getsockname()[1]}"
        server.when_ready = lambda: print(f"Serving on {url} ({runner.why}); stop with Ctrl-C.", flush=True)
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
    with listening("127.0.0.1", 0) as listener:
        server = make_server(runner, limits, keys)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="endpoint")
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            while thread.is_alive() and not server.started:
                thread.join(0.005)
            check_started(server)
            yield url
        finally:
            server.should_exit = True
            thread.join()


class Server(uvicorn.Server):
    """uvicorn that says when the model has warmed up and requests are answered."""

    when_ready: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, whose newer versions exit the process where the app does not start."""
        try:
            await super().startup(sockets)
        except SystemExit:
            self.should_exit = True
        if self.started and self.when_ready is not None:
            self.when_ready()


def make_server(engine: Engine, limits: Limits | None, keys: ApiKeys | None) -> Server:
    """uvicorn around the app; it drains on shutdown."""
    app = create_app(engine, limits, keys)
    return Server(uvicorn.Config(app, log_level="warning", access_log=False, ws="none", server_header=False))


def check_started(server: Server) -> None:
    """ServingError where the model failed on its first cells, which uvicorn has logged."""
    if not server.started:
        raise ServingError(
            "The endpoint did not start: the model failed on its first cells; the log above says why."
        )


@contextmanager
def listening(host: str, port: int, public: bool = False) -> Iterator[socket.socket]:
    """A listening socket; ServingError for an address not allowed (see ``listen_address``) or a port in use."""
    address = listen_address(host, public)
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((str(address), port))
        except OSError as error:
            raise ServingError(
                f"Port {port} on {host} is not free ({error.strerror}); choose another."
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
