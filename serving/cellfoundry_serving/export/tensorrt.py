"""TensorRT plan from the same graph as the ONNX export, in half precision, strongly typed.

TensorRT 11 knows strong typing only, and its fused attention needs half precision; both are fine with 10.x.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from cellfoundry_serving.atomic import atomic_path
from cellfoundry_serving.errors import ServingError

# Most cells of a run by the tokens of the longest: about 32,768 tokens each. The last bucket is for bulk samples.
BUCKETS = ((512, 64), (2048, 16), (8192, 4), (32_768, 1))
SHORTEST = 3  # T, S and a gene


@dataclass(frozen=True)
class Profile:
    """A length bucket: the batches one optimisation profile takes.

    Attributes:
        max_tokens: tokens of the longest cell.
        max_cells: cells.
    """

    max_tokens: int
    max_cells: int

    def shapes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """(cells, tokens) of the smallest, usual and largest batch."""
        usual = (max(1, self.max_cells // 2), max(SHORTEST, self.max_tokens * 3 // 4))
        return (1, SHORTEST), usual, (self.max_cells, self.max_tokens)


def profiles_for(n_positions: int) -> list[Profile]:
    """The buckets that cells over ``n_positions`` positions need, ascending; the last takes every cell."""
    shorter = [Profile(tokens, cells) for tokens, cells in BUCKETS if tokens < n_positions]
    cells = next(cells for tokens, cells in (*BUCKETS, (n_positions, 1)) if tokens >= n_positions)
    return [*shorter, Profile(n_positions, cells)]


def pick_profile(profiles: list[Profile], tokens: int) -> int:
    """Index of the first profile that takes cells of ``tokens`` tokens."""
    return next(index for index, profile in enumerate(profiles) if tokens <= profile.max_tokens)


def build_plan(trt: ModuleType, onnx_path: Path, profiles: list[Profile], timing_cache: Path) -> bytes:
    """Parses ``onnx_path`` and builds a serialised engine for the GPU at hand; ServingError where it cannot.

    ``timing_cache`` keeps what TensorRT measured of its kernels, so that the next build is faster (TensorRT-RTX
    measures nothing).
    TensorRT-RTX also builds on a machine without a GPU.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # the bindings raise TypeError where there is no driver
        raise ServingError(
            "TensorRT finds no NVIDIA GPU; build on the machine that will run the engine."
        ) from error
    network = parse(trt, builder, logger, onnx_path)
    allow_unfused_attention(trt, network)
    config = builder.create_builder_config()
    for profile in profiles:
        config.add_optimization_profile(optimization_profile(builder, network, profile))
    if keeps_times(trt):
        load_timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ServingError("TensorRT could not build an engine from the graph; its log above says why.")
    if keeps_times(trt):
        save_timing_cache(config, timing_cache)
    return bytes(plan)


def parse(trt: ModuleType, builder: Any, logger: Any, onnx_path: Path) -> Any:
    """The network of a graph; ServingError with the parser's first complaint."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        raise ServingError(f"TensorRT cannot parse the graph: {parser.get_error(0).desc()}.")
    return network


def allow_unfused_attention(trt: ModuleType, network: Any) -> None:
    """Lets TensorRT split an attention of a head width that no fused kernel takes, instead of giving up."""
    boundary = getattr(
        trt.LayerType, "ATTENTION_INPUT", None
    )  # releases before 10.14 have no attention layer
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == boundary:
            layer.__class__ = trt.IAttentionInputLayer  # the bindings' way to downcast
            layer.attention.decomposable = True


def optimization_profile(builder: Any, network: Any, bucket: Profile) -> Any:
    """TensorRT's form of a bucket, over cells and tokens; ``length`` has the first axis only."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        profile.set_shape(tensor.name, *(shape[: len(tensor.shape)] for shape in bucket.shapes()))
    return profile


def keeps_times(trt: ModuleType) -> bool:
    """Whether builds measure kernels: TensorRT-RTX leaves that to the first run, and warns who asks it."""
    return "rtx" not in trt.__name__


def default_timing_cache(flavour: str, device: str) -> Path:
    """A file of the user's cache folder, one for each TensorRT and GPU: times of one say nothing of another."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cellfoundry" / "tensorrt"
    return folder / f"{hashlib.sha256(f'{flavour}/{device}'.encode()).hexdigest()[:16]}.timing"


def load_timing_cache(config: Any, path: Path) -> None:
    """Gives the builder the cache, a new one where there is none; ServingError for a file that is none."""
    blob = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(blob)
    if cache is None or not config.set_timing_cache(cache, False):
        raise ServingError(f"{path}: not a timing cache of this TensorRT and GPU; delete it or give another.")


def save_timing_cache(config: Any, path: Path) -> None:
    """Writes what the build measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        partial.write_bytes(bytes(config.get_timing_cache().serialize()))
