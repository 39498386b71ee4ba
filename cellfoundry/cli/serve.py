"""``cellfoundry serve``: the endpoint."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

from cellfoundry.cli.embed import ENGINE_HELP, PROVIDER_HELP, EngineName, ProviderName


class LogForm(StrEnum):
    """As ``endpoint.logs`` has them."""

    text = "text"
    json = "json"


def serve(
    model: list[str] = typer.Option(
        ...,
        metavar="[NAME=]DIR",
        help="Model directory, export, or a folder of versions named 1, 2, ...; may be given again, under other names.",
    ),
    versions: int = typer.Option(1, min=1, help="Serve the newest so many versions of a model."),
    allow_load: bool = typer.Option(
        False, help="Clients may load new versions and unload models; SIGHUP loads new versions in any case."
    ),
    engine: EngineName = typer.Option(EngineName.auto, help=ENGINE_HELP),
    provider: ProviderName | None = typer.Option(None, help=PROVIDER_HELP),
    host: str = typer.Option(
        "127.0.0.1", help="IP address to listen on; one that is not loopback needs --api-keys."
    ),
    port: int = typer.Option(8000, min=0, max=65535, help="TCP port of HTTP; 0 takes a free one."),
    grpc_port: int = typer.Option(
        8001, min=0, max=65535, help="TCP port of gRPC; 0 takes a free one (with --ray there is HTTP only)."
    ),
    no_grpc: bool = typer.Option(False, "--no-grpc", help="HTTP only."),
    api_keys: Path | None = typer.Option(
        None, help="File with one key a line; requests without one of them get 401 (health probes need none)."
    ),
    public_url: str | None = typer.Option(
        None,
        help="Where clients reach it, behind a proxy say: links in answers begin so (https://cells.example.org).",
    ),
    max_body_bytes: int = typer.Option(67_108_864, min=1, help="Bytes of a request's body; more gets 413."),
    max_bodies_bytes: int = typer.Option(
        536_870_912, min=1, help="Bytes of the bodies of all requests in hand; a request beyond gets 429."
    ),
    max_json_bytes: int = typer.Option(
        8_388_608,
        min=1,
        help="Bytes of JSON in a body, which stops all others while it is read; more gets 413.",
    ),
    max_cells: int = typer.Option(4096, min=1, help="Cells of a request; more gets 413."),
    max_queued_tokens: int = typer.Option(
        4_194_304, min=1, help="Tokens (genes with counts, and 2 a cell) that may wait; beyond is 429."
    ),
    max_wait: float = typer.Option(
        10.0,
        min=0.001,
        help="Seconds of computing that may stand before a request, estimated; beyond is 429.",
    ),
    cache_bytes: int = typer.Option(
        67_108_864, min=0, help="Memory for finished embeddings, for cells that come again; 0 keeps none."
    ),
    timeout: float = typer.Option(
        600.0, min=0.001, help="Seconds for a body to arrive (then 408), and from there for the answer (504)."
    ),
    on_ray: bool = typer.Option(
        False, "--ray", help="As replicas of Ray Serve, on the cluster of RAY_ADDRESS or a local one."
    ),
    min_replicas: int = typer.Option(1, min=1, help="With --ray: replicas that stay without requests."),
    max_replicas: int = typer.Option(4, min=1, help="With --ray: replicas under load."),
    replica_cpus: float = typer.Option(1.0, min=0.0, help="With --ray: CPUs, and threads, of a replica."),
    replica_gpus: float = typer.Option(0.0, min=0.0, help="With --ray: GPUs of a replica."),
    drain_s: float = typer.Option(
        0.0, min=0, help="Seconds between SIGTERM, from which readiness fails, and closing the port."
    ),
    log_format: LogForm = typer.Option(LogForm.text, help="Of the log on standard error."),
    access_log: bool = typer.Option(True, help="Log a line for each request."),
) -> None:
    """Serve embeddings over the Open Inference Protocol (V2; HTTP and gRPC) and JSON.

    SIGTERM and Ctrl-C drain; a second one stops at once.
    """
    from cellfoundry_serving.endpoint.limits import Limits
    from cellfoundry_serving.errors import ServingError

    if not math.isfinite(timeout) or not math.isfinite(max_wait):
        raise ServingError("--timeout and --max-wait are seconds; give numbers.")
    limits = Limits(
        body_bytes=max_body_bytes,
        bodies_bytes=max_bodies_bytes,
        json_bytes=max_json_bytes,
        cells=max_cells,
        queued_tokens=max_queued_tokens,
        wait_s=max_wait,
        cache_bytes=cache_bytes,
        timeout_s=timeout,
    )
    options: dict[str, Any] = {
        "engine": engine.value,
        "provider": provider.value if provider else None,
        "host": host,
        "port": port,
        "limits": limits,
        "api_keys": api_keys,
        "versions": versions,
        "public_url": public_url,
    }
    if not on_ray:
        from cellfoundry_serving.endpoint.logs import configure_logs
        from cellfoundry_serving.endpoint.server import serve as run_server

        configure_logs(log_format.value, access_log)
        grpc = None if no_grpc else grpc_port
        run_server(model, **options, allow_load=allow_load, grpc_port=grpc, drain_s=drain_s)
        return
    if allow_load:
        raise ServingError(
            "--allow-load reaches one replica only; to serve new versions, stop the command and run it again."
        )
    if drain_s or log_format is not LogForm.text or not access_log:
        raise ServingError(
            "--drain-s, --log-format and --no-access-log are not for --ray: Ray Serve drains and logs by itself."
        )
    if min_replicas > max_replicas:
        raise ServingError("--min-replicas is above --max-replicas; raise --max-replicas.")
    from cellfoundry_serving.endpoint.ray_serve import Scale, serve_on_ray

    scale = Scale(min_replicas=min_replicas, max_replicas=max_replicas, cpus=replica_cpus, gpus=replica_gpus)
    serve_on_ray(model, **options, scale=scale)
