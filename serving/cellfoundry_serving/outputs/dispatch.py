"""Which writer a file name asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellfoundry_serving.atomic import atomic_path, check_parent
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.outputs.base import EmbeddingWriter, OutputSpec

SUFFIXES = (".h5ad", ".npy", ".parquet", ".zarr")
GENE_SUFFIXES = (".npy", ".zarr")


def check_output(out: Path, output: str) -> None:
    """Raises ServingError before any work where ``out`` cannot take this ``output`` or has no folder."""
    if out.suffix.lower() not in SUFFIXES:
        raise ServingError(f"{out}: unknown output format; use one of {', '.join(SUFFIXES)}.")
    if output == "gene" and out.suffix.lower() not in GENE_SUFFIXES:
        raise ServingError(f"{out}: gene embeddings have three axes; use one of {', '.join(GENE_SUFFIXES)}.")
    if out.is_dir() and not (out.suffix.lower() == ".zarr" and (out / "embedding").is_dir()):
        raise ServingError(
            f"{out} is a folder and no earlier embedding, so it is not replaced; give another name."
        )
    check_parent(out)


@contextmanager
def open_writer(out: Path, spec: OutputSpec) -> Iterator[EmbeddingWriter]:
    """The writer for ``out``; the file appears there when the body ends without an error."""
    with atomic_path(out) as partial:
        writer = writer_class(out)(partial, spec)
        try:
            yield writer
        finally:
            writer.close()


def writer_class(out: Path) -> type[EmbeddingWriter]:
    """The class for ``out``'s suffix; formats are imported when asked for."""
    suffix = out.suffix.lower()
    if suffix == ".h5ad":
        from cellfoundry_serving.outputs.h5ad import H5adWriter

        return H5adWriter
    if suffix == ".parquet":
        from cellfoundry_serving.outputs.parquet import ParquetWriter

        return ParquetWriter
    if suffix == ".zarr":
        from cellfoundry_serving.outputs.zarr_group import ZarrWriter

        return ZarrWriter
    from cellfoundry_serving.outputs.npy import NpyWriter

    return NpyWriter
