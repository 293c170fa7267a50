"""Configuration files and command lines: strict, and with messages that help."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import pytest

from dso_jax import config_io
from dso_jax.config import Config, OptimConfig
from dso_jax.errors import UsageError
from dso_jax.models import Execution, LoRAConfig
from dso_jax.training import setup

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_parses_and_says_how_to_run_it(path):
    config = config_io.load(path)
    config_io.check(config)
    assert path.stem.endswith(config.objective.name)
    assert f"--config configs/{path.name}" in path.read_text().split("base:")[0]


@pytest.mark.parametrize("prefix", ["", "24gb-"], ids=["full", "24gb"])
@pytest.mark.parametrize(("name", "steps"), [("dro", 4000), ("dpo", 8000), ("sft", 8000)])
def test_the_full_size_configs_have_the_papers_settings(prefix, name, steps):
    path = next(path for path in CONFIGS if path.stem == prefix + name)
    config = config_io.load(path)
    assert config.base == "TRELLIS-image-large" and config.trainable == ("lora",)
    objective = config.objective
    assert (objective.name, objective.beta, objective.pairing) == (name, 500.0, "paired")
    assert (objective.loser_weight, objective.loser_clip, objective.min_tilt_gap) == (1, None, 0)
    assert (objective.time_mean, objective.time_std, objective.share_noise) == (1.0, 1.0, False)
    assert config.optim == OptimConfig(5e-6, 2000, 0.01, (0.9, 0.999), 1e-8, 1.0)
    assert config.lora == LoRAConfig(64, 128.0, ("to_q", "to_kv", "to_out", "to_qkv"))
    train = config.train
    assert (train.steps, train.batch_size, train.seed) == (steps, 48, 0)
    assert (config.system.dtype, config.system.fsdp) == ("bfloat16", 1)
    # 48 pairs a step on any of these numbers of GPUs; the small card takes them 6 at a time.
    for devices in (1,) if prefix else (1, 2, 4, 8):
        assert train.batch_size % (devices * train.accumulation) == 0
    header = path.read_text().split("base:")[0]
    assert "Hardware:" in header and "Expect" in header and "--plan --device" in header
    assert train.batch_size // train.accumulation == (6 if prefix else 24)


def test_a_file_holds_differences_only(tmp_path):
    config = config_io.load(write(tmp_path, "objective: {name: dro}\ntrain: {steps: 7}\n"))
    default = Config()
    assert config.objective == dataclasses.replace(default.objective, name="dro")
    assert config.train == dataclasses.replace(default.train, steps=7)
    assert config.optim == default.optim


@pytest.mark.parametrize("text", ["5e-6", "5.0e-06", "5E-6", "0.000005"])
def test_floats_are_read_as_people_write_them(tmp_path, text):
    config = config_io.load(write(tmp_path, f"optim:\n  learning_rate: {text}\n"))
    assert config.optim.learning_rate == 5e-6


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("optim: {learnig_rate: 1}", ["optim.learnig_rate", "did you mean optim.learning_rate"]),
        ("optm: {}", ["unknown key optm", "did you mean optim"]),
        ("train: {steps: many}", ["train.steps", "a whole number", "'many' (str)"]),
        ("train: {steps: 1.5}", ["train.steps", "a whole number", "1.5"]),
        ("train: {overwrite: 1}", ["train.overwrite", "true or false"]),
        ("train: {steps: true}", ["train.steps", "a whole number", "True"]),
        ("trainable: lora", ["trainable", "a list"]),
        ("trainable: [1]", ["trainable[0]", "text"]),
        ("optim: {betas: [0.9]}", ["optim.betas", "a list of 2 values"]),
        ("system: {remat: some}", ["system.remat", "one of none, dots, full"]),
        ("objective: {name: ppo}", ["objective.name", "ppo"]),
        ("lora: {rank: 0}", ["lora.rank"]),
        ("train: 3", ["train", "a mapping"]),
        ("system: {fsdp: half}", ["system.fsdp", "a whole number"]),
        ("guard: {max_win_rise: no}", ["guard.max_win_rise", "a number", "False"]),
        ("objective: {name: dpo, loser_clip: 2.0}", ["objective.loser_clip 2.0", "dro"]),
        ("train: {steps: 1, steps: 2}", ["'steps' is given twice"]),
        ("train: [", ["run.yaml"]),
    ],
)
def test_a_bad_file_is_refused_by_file_and_key(tmp_path, text, parts):
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as error:
        config_io.load(path)
    for part in [str(path), *parts]:
        assert part in str(error.value)


def test_command_line_overrides_file_overrides_default(tmp_path):
    path = write(tmp_path, "optim: {learning_rate: 2e-5, eps: 1e-6}\n")
    arguments = ["--optim.learning_rate", "1e-4", "--config", str(path), "--trainable", "lora"]
    config = config_io.parse(arguments)
    assert (config.optim.learning_rate, config.optim.eps) == (1e-4, 1e-6)
    assert config.optim.warmup_steps == Config().optim.warmup_steps


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        (["--config"], "--config: expected exactly one file"),
        (["--train.steps", "0"], "train.steps is 0, expected at least 1"),
        (["--optim.learning_rate", "nan"], "optim.learning_rate is nan"),
        (["--optim.betas", "0.9", "1.0"], "optim.betas"),
        (["--system.fsdp", "0"], "system.fsdp is 0, expected at least 1"),
        (["--guard.max_win_rise", "0"], "guard.max_win_rise is 0.0, expected above 0"),
        (["--guard.window", "0"], "guard.window is 0"),
        (["--train.batch_size", "5", "--train.accumulation", "2"], "not a multiple"),
    ],
)
def test_values_that_cannot_train_are_refused(arguments, part):
    with pytest.raises(UsageError, match=part):
        config_io.parse(arguments)


def test_unknown_arguments_and_help_exit_as_documented(capsys):
    with pytest.raises(SystemExit) as wrong:
        config_io.parse(["--optim.learnig_rate", "1"])
    assert wrong.value.code == 2
    with pytest.raises(SystemExit) as asked:
        config_io.parse(["--help"])
    assert asked.value.code == 0
    text = capsys.readouterr().out
    assert "--optim.learning_rate" in text and "configs/toybox-dro.yaml" in text


def test_the_resolved_file_reads_back_as_the_same_config(tmp_path):
    config = config_io.parse(["--optim.learning_rate", "3e-7", "--sampler.steps", "6"])
    config_io.save(config, tmp_path / "config.yaml")
    assert config_io.load(tmp_path / "config.yaml") == config


def test_differences_name_section_and_field():
    changed = config_io.parse(["--lora.rank", "8"])
    assert config_io.differences(Config(), changed) == {"lora.rank": (64, 8)}


def test_options_of_the_compiler():
    options = ("xla_gpu_enable_triton_gemm=false", "xla_gpu_autotune_level=4")
    expected = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": "4"}
    assert setup.compiler_options(options) == expected
    for option in ("--xla_gpu_autotune_level=4", "xla_gpu_autotune_level", "=4"):
        with pytest.raises(UsageError, match=f"system.xla: '{option}': expected name=value"):
            setup.compiler_options([option])
    step = jax.jit(lambda x: x + 1)
    (compiled,) = setup.compile_all(
        step, arguments=(1.0,), options=["xla_cpu_enable_fast_min_max=true"]
    )
    assert compiled(1.0) == 2
    for option in ("xla_no_such=1", "xla_backend_optimization_level=high"):
        with pytest.raises(UsageError, match=r"system.xla: .*option"):
            setup.compile_all(step, arguments=(1.0,), options=[option])


def test_the_ways_of_execution_are_part_of_the_system(tmp_path):
    path = write(tmp_path, "system: {remat: attention+qkv, unroll: 24, dtype: bfloat16}")
    system = config_io.load(path).system
    assert system.execution == Execution(remat="attention+qkv", unroll=24, dtype="bfloat16")
