"""Configurations: presets that load, and mistakes that are named."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from cellfoundry_training.between_steps import SaveClock
from cellfoundry_training.config import CONFIG_DIR, PretrainConfig, load_config
from cellfoundry_training.engine import deepspeed_settings
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.schedule import budget_share, learning_rate

PRESET_FILES = sorted(CONFIG_DIR.glob("*.yaml"))


def test_every_size_has_a_preset() -> None:
    assert {file.stem for file in PRESET_FILES} == {"tiny", "3m", "10m", "100m", "300m"}


@pytest.mark.parametrize("file", PRESET_FILES, ids=lambda file: file.stem)
def test_preset_shows_every_value(file: Path) -> None:
    config = load_config(file.stem)
    shown = {
        line.split(":")[0] for line in file.read_text().splitlines() if line and not line.startswith("#")
    }
    assert shown == set(PretrainConfig.model_fields)
    assert config.architecture(n_genes=50).n_genes == 50


def test_100m_has_the_published_hyperparameters() -> None:
    config = load_config("100m")
    assert config.workers == 64
    # 64 x 128 x 8 cells a step at the published 1,050 encoder tokens, of which masks hide a quarter beforehand.
    assert config.batch_tokens is not None
    cells = config.batch_tokens / (1050 / 0.76 + config.cell_tokens)
    assert 64 * cells * config.gradient_accumulation == pytest.approx(64 * 128 * 8, rel=0.02)
    assert (config.learning_rate, config.weight_decay, config.warmup_steps, config.clip) == (
        1e-4,
        0.0,
        9766,
        1.0,
    )
    assert (config.value_mask_prob, config.zero_mask_prob, config.replace_prob, config.random_prob) == (
        0.3,
        0.03,
        0.8,
        0.1,
    )


def test_written_config_reads_back_equal(tmp_path: Path) -> None:
    config = load_config("tiny", ["model.encoder_depth=1", "learning_rate=1e-3"])
    config.write(tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml")
    assert again == config
    assert again.hash() == config.hash() != load_config("tiny").hash()


def test_a_full_disk_does_not_cost_the_configuration(
    tmp_path: Path, files_no_larger_than: Callable[[int], AbstractContextManager[None]]
) -> None:
    before, later = load_config("tiny"), load_config("tiny", ["max_steps=9"])
    before.write(tmp_path / "config.yaml")
    with files_no_larger_than(100), pytest.raises(OSError, match="File too large"):
        later.write(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == before
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_overrides_reach_the_run_and_the_model() -> None:
    config = load_config(
        "tiny", ["learning_rate=2e-4", "max_seconds=null", "max_steps=7", "model.decoder_depth=3"]
    )
    assert (config.learning_rate, config.max_seconds, config.max_steps) == (2e-4, None, 7)
    assert config.architecture(n_genes=50).decoder_depth == 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("learning_rat=1", ["learning_rat", "learning_rate"]),
        ("model.encoder_dept=1", ["model.encoder_dept", "model.encoder_depth"]),
        ("clip.norm=1", ["clip.norm"]),
        ("learning_rate", ["key=value"]),
        ("learning_rate=-1", ["learning_rate", "greater than 0", "-1"]),
        ("learning_rate=fast", ["learning_rate", "number", "'fast'"]),
        ("zero_stage=4", ["zero_stage", "4"]),
        ("precision=fp8", ["precision", "fp8"]),
        ("value_mask_prob=1.5", ["value_mask_prob", "1.5"]),
        ("decoder_context=half", ["decoder_context", "'full' or 'sampled'", "'half'"]),
        ("context_rate=0", ["context_rate", "greater than 0"]),
        ("context_rate=1.1", ["context_rate", "1.1"]),
        ("replace_prob=0.95", ["replace_prob + random_prob"]),
        ("max_seconds=null", ["max_steps", "max_seconds"]),
        ("checkpoint_every_steps=null", ["checkpoint_every_steps or checkpoint_every_minutes"]),
        ("min_workers=2", ["min_workers is 2, more than workers, 1"]),
        ("model=huge", ["huge", "tiny"]),
        ("model.encoder_heads=7", ["model", "encoder_heads"]),
        ("batch_cells=[", ["batch_cells", "YAML"]),
        ("batch_cells=null", ["batch_cells or batch_tokens must be set"]),
        ("batch_tokens=4096", ["batch_cells or batch_tokens must be set, and not both"]),
        ("batch_tokens=0", ["batch_tokens", "greater than 0"]),
        ("deepspeed=nowhere.json", ["deepspeed: nowhere.json cannot be read"]),
        ("deepspeed={gradient_clipping: 2.0}", ["gradient_clipping is 2.0", "makes it 1.0"]),
        ("deepspeed={zero_optimization: {stage: 2}}", ["zero_optimization.stage is 2", "makes it 0"]),
        ("deepspeed={bf16: {enabled: true}}", ["bf16.enabled is True"]),
        ("deepspeed={fp16: {enabled: true}}", ["fp16.enabled is True"]),
        ("deepspeed={train_batch_size: 7}", ["train_batch_size is 7", "makes it 1"]),
        (
            "deepspeed={zero_optimization: {offload_optimizer: {device: cpu}}}",
            ["zero_optimization.offload_optimizer is not supported"],
        ),
        ("deepspeed={optimizer: {type: Adam}}", ["optimizer", "learning_rate"]),
    ],
)
def test_a_mistake_is_named_in_one_sentence(override: str, words: list[str]) -> None:
    with pytest.raises(TrainingError) as error:
        load_config("tiny", [override])
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_unknown_preset_lists_the_presets() -> None:
    with pytest.raises(TrainingError, match=r"no configuration 'smal'.*tiny"):
        load_config("smal")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: [", "not valid YAML"),
        ("- a list", "mapping"),
        ("model: tiny\nbatch: 3", "unknown key 'batch'; the nearest is 'batch_cells'"),
        ("model: tiny", "learning_rate: Field required"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(TrainingError, match=r"mine\.yaml") as error:
        load_config(file)
    assert words in str(error.value)


def test_learning_rate_warms_up_and_falls() -> None:
    config = load_config("tiny", ["warmup_steps=10", "max_seconds=null", "max_steps=100", "learning_rate=1"])
    rates = [learning_rate(config, step, budget_share(config, step - 1, 0.0)) for step in range(1, 101)]
    peak = max(rates)
    assert rates[0] == pytest.approx(0.1)
    assert 9 <= rates.index(peak) <= 11
    assert rates[-1] == pytest.approx(config.min_learning_rate_share, abs=0.01)
    assert rates[12:] == sorted(rates[12:], reverse=True)


def test_budget_ends_with_steps_or_seconds_whichever_comes_first() -> None:
    config = load_config("tiny", ["max_steps=10", "max_seconds=100"])
    assert budget_share(config, steps=5, seconds=20.0) == 0.5
    assert budget_share(config, steps=5, seconds=100.0) == 1.0


@pytest.mark.parametrize(("ranks", "rounds"), [(4, 3), (3, 4), (2, 6), (5, 3)])
def test_fewer_ranks_take_more_rounds_for_the_same_step(ranks: int, rounds: int) -> None:
    config = load_config("tiny", ["workers=4", "gradient_accumulation=3", "min_workers=2"])
    fewer = config.on_ranks(ranks)
    assert config.step_batches == 12
    assert (fewer.workers, fewer.gradient_accumulation) == (ranks, rounds)
    assert deepspeed_settings(fewer)["train_batch_size"] == ranks * rounds


def test_saves_are_due_by_steps_or_minutes() -> None:
    by_steps = SaveClock(load_config("tiny", ["checkpoint_every_steps=5"]), step=0)
    assert [step for step in range(1, 12) if by_steps.due_at(step)] == [5, 10]
    assert not by_steps.minutes_passed()
    at_once = load_config("tiny", ["checkpoint_every_steps=null", "checkpoint_every_minutes=1e-12"])
    by_minutes = SaveClock(at_once, step=0)
    assert by_minutes.minutes_passed()
    assert not by_minutes.due_at(5)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_settings_follow_the_config(stage: int) -> None:
    config = load_config(
        "tiny", [f"zero_stage={stage}", "gradient_accumulation=3", "precision=bf16", "clip=0.5"]
    )
    settings = deepspeed_settings(config)
    assert settings["zero_optimization"]["stage"] == stage
    assert settings["gradient_accumulation_steps"] == 3
    assert settings["gradient_clipping"] == 0.5
    assert settings["bf16"] == {"enabled": True, "check_grad_overflow": True}


def test_the_users_deepspeed_settings_replace_the_stages(tmp_path: Path) -> None:
    """The file is read once: what it held goes with the run's resolved configuration."""
    file = tmp_path / "mine.json"
    file.write_text(
        '{"zero_optimization": {"stage": 2, "reduce_bucket_size": 1000}, "gradient_clipping": "auto", '
        '"zero_allow_untested_optimizer": true, "prescale_gradients": false}'
    )
    config = load_config("tiny", [f"deepspeed={file}", "zero_stage=2"])
    file.unlink()
    settings = deepspeed_settings(config)
    assert settings["zero_optimization"] == {
        "stage": 2,
        "reduce_bucket_size": 1000,
        "compute_grad_norm": True,
    }
    assert settings["prescale_gradients"] is False
    assert settings["gradient_clipping"] == config.clip
    config.write(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_broken_deepspeed_json_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    for text, words in (("{", "is not valid JSON"), ("[1]", "must hold one JSON object")):
        file.write_text(text)
        with pytest.raises(TrainingError, match=f"mine.json {words}"):
            load_config("tiny", [f"deepspeed={file}"])
