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
        "127.0.0.1", help="Address to listen on; only loopback, until keys are supported."
    ),
    port: int = typer.Option(8000, min=0, max=65535, help="TCP port; 0 takes a free one."),
) -> None:
    """Serve embeddings over the Open Inference Protocol (V2) and JSON; SIGTERM and Ctrl-C drain."""
    from cellfoundry_serving.endpoint.server import serve as run_server

    run_server(
        model, engine=engine.value, provider=provider.value if provider else None, host=host, port=port
    )
