"""What the V2 protocol tells of the server and its models, over HTTP and gRPC alike."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from cellfoundry_serving.endpoint.models import Models, ServedModel

INPUTS = (("indptr", "INT64"), ("gene_ids", "INT32"), ("counts", "FP32"))
OUTPUT = "embedding"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")


def server_metadata() -> dict[str, Any]:
    """Name, version and extensions."""
    return {"name": "cellfoundry", "version": version("cellfoundry"), "extensions": list(EXTENSIONS)}


def model_metadata(model: ServedModel, versions: Sequence[ServedModel]) -> dict[str, Any]:
    """Inputs, outputs and origin of one version, and which others there are."""
    return {
        "name": model.name,
        "versions": [str(other.version) for other in versions],
        "platform": model.engine.name,
        "inputs": [{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in INPUTS],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, -1]}],
        "parameters": {
            "version": str(model.version),
            "model_sha256": model.engine.info["weights_sha256"],
            "vocabulary_sha256": model.engine.info["vocabulary_sha256"],
        },
    }


def model_config(model: ServedModel) -> dict[str, Any]:
    """The part of Triton's model configuration that its clients read (model_config.proto); no batch dimension."""
    return {
        "name": model.name,
        "platform": model.engine.name,
        "backend": "cellfoundry",
        "max_batch_size": 0,
        "input": [{"name": name, "data_type": f"TYPE_{datatype}", "dims": [-1]} for name, datatype in INPUTS],
        "output": [{"name": OUTPUT, "data_type": "TYPE_FP32", "dims": [-1, -1]}],
        "parameters": {},
    }


def repository_index(models: Models, ready: bool) -> list[dict[str, str]]:
    """Every version that is loaded and, unless only those that are ``ready`` are asked for, every model that is not."""
    index = []
    for name in models.names():
        loaded = [str(model.version) for model in models.all() if model.name == name]
        state = {"state": "READY", "reason": ""} if loaded else {"state": "UNAVAILABLE", "reason": "unloaded"}
        index += [{"name": name, "version": number, **state} for number in loaded or [""]]
    return [entry for entry in index if entry["state"] == "READY" or not ready]


def statistics(models: Models, name: str | None = None, version: str | None = None) -> dict[str, Any]:
    """Of every version of every model, those of one, or one; RequestError 404 where there is none."""
    if name is None:
        asked = models.all()
    elif version is None:
        asked = models.versions(name)
    else:
        asked = [models.find(name, version)]
    return {"model_stats": [_statistics_of(model) for model in asked]}


def _statistics_of(model: ServedModel) -> dict[str, Any]:
    """Counts and nanoseconds since the version was loaded, in the statistics extension's form."""
    done = model.metrics
    spans = {
        "success": done.success,
        "fail": done.failed,
        "queue": done.queue,
        "compute_infer": done.engine,
        "cache_hit": done.kept,
        "cache_miss": done.not_kept,
    }
    empty = {"count": 0, "ns": 0}
    inference = {name: {"count": span.count, "ns": round(span.seconds * 1e9)} for name, span in spans.items()}
    return {
        "name": model.name,
        "version": str(model.version),
        "last_inference": round(done.last_s * 1e3),
        "inference_count": done.cells,
        "execution_count": done.engine.count,
        "inference_stats": {
            **inference,
            "compute_input": empty,
            "compute_output": empty,
        },
        "batch_stats": [],
    }
