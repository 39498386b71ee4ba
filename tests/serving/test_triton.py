"""The Triton repository, with Triton's own schema; its ragged graph, run as Triton would feed it."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.tokens import tokenize
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.ragged import write_ragged
from cellfoundry_serving.export.tensorrt_profiles import LAYOUTS, Layout, profiles_for
from cellfoundry_serving.export.triton import check_triton, new_version, triton_configs

from .conftest import CONFIG

with warnings.catch_warnings():  # grpc's and protobuf's about their own versions
    warnings.simplefilter("ignore")
    from tritonclient.grpc import model_config_pb2

WIDTH = CONFIG.encoder_width
VOCABULARY = "0" * 64
CONFIG_TEXT = triton_configs("cell", "onnx", CONFIG, VOCABULARY)["ragged"]


@pytest.fixture(scope="module")
def repository(onnx_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    write_ragged(onnx_dir / "model.onnx", folder / "model.onnx", pad_position=CONFIG.n_genes + 2)
    with new_version(folder / "cell", CONFIG_TEXT, folder / "model.onnx") as version:
        assert not version.exists()
    assert version == folder / "cell" / "1"
    return folder


def test_config_is_what_triton_reads_and_the_graph_has(repository: Path) -> None:
    text = (repository / "cell" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    session = onnxruntime.InferenceSession(
        repository / "cell" / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    assert (config.name, config.backend) == ("cell", "onnxruntime")
    assert config.HasField("dynamic_batching")
    assert config.parameters["vocabulary_sha256"].string_value == VOCABULARY
    types = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64", "tensor(int32)": "TYPE_INT32"}
    declared = {tensor.name: tensor.data_type for tensor in config.input}
    declared |= {tensor.target_name[0]: tensor.data_type for tensor in config.batch_input}
    assert declared == {
        tensor.name: model_config_pb2.DataType.Value(types[tensor.type]) for tensor in session.get_inputs()
    }
    # A ragged input reaches the model flat.
    assert all(tensor.allow_ragged_batch and tensor.dims == [-1] for tensor in config.input)
    assert all(len(tensor.shape) == 1 for tensor in session.get_inputs())
    [output] = session.get_outputs()
    assert (config.output[0].name, list(config.output[0].dims)) == (output.name, [4 * WIDTH])


def test_the_ragged_graph_gives_what_torch_gives(repository: Path, engine: Engine, cells: CellBatch) -> None:
    rows = np.flatnonzero(np.diff(cells.indptr))
    expected = engine.encode(cells.select(rows))
    session = onnxruntime.InferenceSession(
        repository / "cell" / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    tokens = tokenize(cells.select(rows), n_genes=CONFIG.n_genes)
    order = [
        np.r_[end - 2 : end, start : end - 2]  # T and S first
        for start, end in zip(tokens.cu_seqlens[:-1], tokens.cu_seqlens[1:], strict=True)
    ]
    for batch in ([range(len(order))], [[row] for row in range(len(order))]):
        parts = []
        for members in batch:
            taken = np.concatenate([order[row] for row in members])
            feeds = {
                "value": tokens.value_N[taken],
                "position": tokens.position_N[taken],
                "length": np.array([len(order[row]) for row in members], np.int32),
            }
            parts.append(session.run(["cell_embedding"], feeds)[0])
        np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-5, rtol=1e-5)


def test_a_second_export_is_the_next_version(repository: Path, onnx_dir: Path) -> None:
    before = (repository / "cell" / "config.pbtxt").read_text()
    with new_version(repository / "cell", CONFIG_TEXT, onnx_dir / "model.onnx") as version:
        assert not version.exists()
    assert version == repository / "cell" / "2"
    assert [path.name for path in version.iterdir()] == ["model.onnx"]
    assert (repository / "cell" / "config.pbtxt").read_text() == before
    shutil.rmtree(repository / "cell" / "2")


@pytest.mark.parametrize(
    ("layout", "inputs"),
    [
        ("padded", {"value": [-1, -1], "position": [-1, -1], "length": [-1]}),
        ("packed", {"value": [-1], "position": [-1], "cu_seqlens": [-1]}),
    ],
)
def test_a_plan_is_served_by_whole_batches(
    tmp_path: Path, layout: Layout, inputs: dict[str, list[int]]
) -> None:
    (tmp_path / "model.plan").write_bytes(b"plan")
    texts = triton_configs("plan", "tensorrt", CONFIG, VOCABULARY)
    text = texts[layout]
    with new_version(tmp_path / "plan", text, tmp_path / "model.plan"):
        pass
    assert (tmp_path / "plan" / "1" / "model.plan").read_bytes() == b"plan"
    text = (tmp_path / "plan" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert (config.backend, config.max_batch_size) == ("tensorrt", 0)
    assert {tensor.name: list(tensor.dims) for tensor in config.input} == inputs
    assert inputs.keys() == profiles_for(layout, CONFIG.n_positions)[0].shapes().keys()
    # Before a plan is built either form may come of it; then only the same one goes beside it.
    check_triton(tmp_path / "plan", texts.values())
    [other] = set(texts) - {layout}
    with pytest.raises(ServingError, match="another kind of model or vocabulary, or was changed"):
        check_triton(tmp_path / "plan", [texts[other]])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("genes", [100, 400, 1000, 19_264])
def test_every_profile_of_a_plan_is_named(genes: int, layout: Layout) -> None:
    """Triton knows only the first one where none is named, and so refused cells of more than 512 tokens."""
    config = replace(CONFIG, n_genes=genes)
    text = triton_configs("cell", "tensorrt", config, VOCABULARY)[layout]
    parsed = text_format.Parse(text, model_config_pb2.ModelConfig())
    [group] = parsed.instance_group
    assert group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert list(group.profile) == [
        str(index) for index in range(len(profiles_for(layout, config.n_positions)))
    ]


def test_what_is_no_triton_model_stays(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for target, message in (
        (tmp_path / "mine", "is no model of a Triton repository"),
        (tmp_path / "no" / "cell", "does not exist; create it first"),
        (tmp_path / "my model", "use letters, digits"),
    ):
        with pytest.raises(ServingError, match=message):
            check_triton(target, [CONFIG_TEXT])
    changed = tmp_path / "cell"
    shutil.copytree(repository / "cell", changed)
    (changed / "config.pbtxt").write_text("max_batch_size: 64")
    with pytest.raises(ServingError, match="another kind of model or vocabulary, or was changed"):
        check_triton(changed, [CONFIG_TEXT])
    assert sorted(path.name for path in changed.iterdir()) == ["1", "config.pbtxt"]
    other_genes = triton_configs("cell", "onnx", CONFIG, "1" * 64).values()
    with pytest.raises(ServingError, match="another kind of model or vocabulary"):
        check_triton(repository / "cell", other_genes)
