"""`cellfoundry serve` in a process of its own, around a small model that is made here, as the soaks ask it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import save_model
from cellfoundry_model.config import ModelConfig

HOST = "127.0.0.1"
COMMAND = "from cellfoundry.cli.main import run; run()"
CONFIG = ModelConfig(
    n_genes=400,
    bins=8,
    bin_alpha=1.0,
    mask_token_id=102,
    pad_token_id=103,
    encoder_width=32,
    encoder_depth=2,
    encoder_heads=4,
    decoder_width=16,
    decoder_depth=1,
    decoder_heads=2,
    decoder_head_dim=8,
    favor_features=16,
)
"""So small that a request costs the endpoint more than the engine."""
GENES = Vocabulary.named("scfoundation").genes[: CONFIG.n_genes]


@dataclass
class Served:
    """A running endpoint.

    Attributes:
        process: the command.
        port: of HTTP.
        grpc: HOST:PORT of gRPC.
        log: where its standard error goes.
    """

    process: subprocess.Popen[str]
    port: int
    grpc: str
    log: Path

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{HOST}:{self.port}"

    def memory_MB(self) -> float:
        """Resident memory of the process itself, now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def ended(self) -> bool:
        """Whether the process has gone."""
        return self.process.poll() is not None


def make_model(folder: Path, seed: int, config: ModelConfig = CONFIG) -> None:
    """A model directory with random weights."""
    torch.manual_seed(seed)
    genes = Vocabulary.named("scfoundation").genes[: config.n_genes]
    save_model(CellModel(config), genes, folder, {})


@contextmanager
def served(model: str, log: Path, *options: str) -> Iterator[Served]:
    """The endpoint of ``model`` ([NAME=]DIR), ready inside; killed at the end, unless it has ended by then."""
    arguments = ["serve", "--model", model, "--port", "0", "--grpc-port", "0", *options]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        addresses = re.match(r"Serving on http://[^ ]*:(\d+) and grpc://([^ ]+) ", line)
        assert addresses, f"the endpoint did not start: {log.read_text()[-2000:]}"
        yield Served(process, int(addresses[1]), addresses[2], log)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
