"""``cellfoundry serve``: the endpoint."""

from __future__ import annotations

from pathlib import Path

import typer

from cellfoundry.cli.embed import ENGINE_HELP, PROVIDER_HELP, EngineName, ProviderName


def serve(
    model: Path = typer.Option(..., help="Model directory (or the directory of an export)."),
    engine: EngineName = typer.Option(EngineName.auto, help=ENGINE_HELP),
    provider: ProviderName | None = typer.Option(None, help=PROVIDER_HELP),
    host: str = typer.Option(
        "127.0.0.1", help="IP address to listen on; one that is not loopback needs --api-keys."
    ),
    port: int = typer.Option(8000, min=0, max=65535, help="TCP port; 0 takes a free one."),
    api_keys: Path | None = typer.Option(
        None, help="File with one key a line; requests without one of them get 401 (health probes need none)."
    ),
    max_body_bytes: int = typer.Option(67_108_864, min=1, help="Bytes of a request's body; more gets 413."),
    max_cells: int = typer.Option(4096, min=1, help="Cells of a request; more gets 413."),
    max_queued_tokens: int = typer.Option(
        4_194_304, min=1, help="Tokens (genes with counts, and 2 a cell) that may wait; beyond is 429."
    ),
    cache_bytes: int = typer.Option(
        67_108_864, min=0, help="Memory for finished embeddings, for cells that come again; 0 keeps none."
    ),
    timeout: float = typer.Option(
        600.0, min=0.001, help="Seconds for a body to arrive (then 408), and from there for the answer (504)."
    ),
) -> None:
    """Serve embeddings over the Open Inference Protocol (V2) and JSON; SIGTERM and Ctrl-C drain."""
    from cellfoundry_serving.endpoint.limits import Limits
    from cellfoundry_serving.endpoint.server import serve as run_server

    run_server(
        model,
        engine=engine.value,
        provider=provider.value if provider else None,
        host=host,
        port=port,
        limits=Limits(
            body_bytes=max_body_bytes,
            cells=max_cells,
            queued_tokens=max_queued_tokens,
            cache_bytes=cache_bytes,
            timeout_s=timeout,
        ),
        api_keys=api_keys,
    )
