"""benchmarks/run.py: each side does the same work, and finished cases are not run again."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import cases, run, table
from benchmarks.measure import SIZES
from dso_jax.models import apply_flow, lora
from dso_jax.objectives import ObjectiveConfig
from dso_jax.training import losses

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--small", "--device", "cpu", "--repeats", "2"]


def test_finished_cases_are_appended_and_not_run_again(tmp_path, capsys):
    out = tmp_path / "here.json"
    assert run.main([*SMALL, "-f", "ceiling/matmul/jax", "--out", str(out)]) == 0
    assert (
        run.main([*SMALL, "-f", "ceiling/(matmul|attention-cross-both)/jax", "--out", str(out)])
        == 0
    )
    said = capsys.readouterr().out
    assert f"1 of 2 cases are in {out}" in said
    records = json.loads(out.read_text())["cases"]
    assert [r["name"] for r in records] == [
        "ceiling/matmul/jax",
        "ceiling/attention-cross-both/jax",
    ]
    for record in records:
        assert record["device"] == "cpu" and len(record["ms_all"]) == 2
        assert 0 < record["ms_min"] <= record["ms"] <= record["ms_max"]
    size = SIZES["small"]
    scores = 2 * 12 * size.flow.num_tokens * size.tokens * size.flow.model_channels
    assert records[1]["tflop_executed"] == 7 * scores / 1e12
    assert run.main([*SMALL, "-f", "no such case"]) == 2
    assert "matches no case" in capsys.readouterr().err


def test_every_case_names_a_function_and_fits_the_table():
    for case in cases.every():
        module, function = case.call.split(":")
        tree = ast.parse((ROOT / "benchmarks" / f"{module}.py").read_text())
        (found,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
        known = {argument.arg for argument in found.args.args}
        assert found.args.kwarg or set(case.options) < known, case.name
    records = [
        {"name": "step/b1/torch-compile", "ms": 2.0, "ms_min": 1.0, "ms_max": 3.0, "peak_gib": 4.0},
        {"name": "step/b1/jax", "ms": 1.0, "ms_min": 1.0, "ms_max": 1.0, "compiler_gib": 1.0},
        {"name": "step/b2/jax", "error": "out of memory"},
    ]
    lines = table.table(records).splitlines()
    assert lines[1].split()[-2:] == ["1.000", "1.000"]
    assert lines[2].split()[-2:] == ["0.500", "0.250"]
    assert lines[3].endswith("out of memory")


def test_a_case_that_cannot_run_here_is_skipped_and_stays_to_be_done(tmp_path, monkeypatch, capsys):
    case = cases.Case("group/absent", "no_such_module:nothing")
    monkeypatch.setattr(run, "every", lambda: [case])
    assert run.main([*SMALL, "--out", str(tmp_path / "x.json")]) == 1
    assert "skipped: no module named benchmarks.no_such_module" in capsys.readouterr().out
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("said", "code", "kept"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate", 1, {"out of memory"}),
        ("ValueError: something else", 1, set()),
    ],
)
def test_what_does_not_fit_the_device_is_a_finding(tmp_path, monkeypatch, said, code, kept):
    def fail(command, stdout, **options):
        stdout.write(f"Traceback ...\n{said}\n")
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(run.subprocess, "run", fail)
    out = tmp_path / "x.json"
    only = [*SMALL, "--apart", "-f", "ceiling/matmul/jax", "--out", str(out)]
    assert run.main(only) == (0 if kept else 1)
    found = json.loads(out.read_text())["cases"] if out.exists() else []
    assert {record["error"] for record in found} == kept


@pytest.fixture(scope="module")
def same(tmp_path_factory):
    """The rival in fp32, its weights as ours, and a batch with everything random drawn."""
    torch = pytest.importorskip("torch")
    from benchmarks import torch_side
    from weight_port import files, layouts

    size = SIZES["small"]
    network = torch_side.network(size).float().cast_torso(torch.float32)
    for name, parameter in network.named_parameters():
        parameter.data *= 20 if "lora_B" in name else 1  # or one would hardly see it
    path = tmp_path_factory.mktemp("rival") / "dso.safetensors"  # as DSO names an adapted model
    names = {f"base_model.model.{k}": v.numpy() for k, v in network.state_dict().items()}
    files.write(path, {re.sub(r"(lora_.)", r"\1.default", k): v for k, v in names.items()}, {})
    params = layouts.read(path, flow=size.flow, alpha=size.lora.alpha).params
    rng = np.random.default_rng(0)
    x, eps = rng.standard_normal((2, 3, 2, 8, 4, 4, 4), np.float32)
    cond = rng.standard_normal((3, size.tokens, size.flow.cond_channels), np.float32)
    arrays = map(jnp.asarray, (x, eps, np.array([0.2, 0.5, 0.9], np.float32), cond))
    groups = losses.Groups(*arrays)

    @jax.jit
    def errors(params: dict, groups: losses.Groups) -> tuple:
        def velocity(params, adapter):
            return lambda x, t, c: apply_flow(size.flow, params, x, t, c, lora=adapter)

        policy, reference = velocity(params, size.lora), velocity(lora.strip(params), None)
        return losses.errors(policy, groups), losses.errors(reference, groups)

    return network, groups, errors(params, groups)


@pytest.mark.parametrize("objective", ["sft", "dro", "dpo"])
def test_the_rival_computes_the_same_loss(same, objective, monkeypatch):
    """Same weights, latents, times and noise: what is timed side by side is the same arithmetic."""
    torch = pytest.importorskip("torch")
    from benchmarks import torch_side

    network, groups, (err, ref) = same
    monkeypatch.setattr(torch_side, "BF16", torch.float32)  # autocast to nothing
    monkeypatch.setattr(torch_side, "BETA", 5.0)  # 500 would multiply the rounding
    members = 1 if objective == "sft" else 2
    x, eps = (torch.tensor(np.asarray(a).swapaxes(0, 1)[:members]) for a in groups[:2])
    t, cond = (torch.tensor(np.asarray(a)) for a in groups[2:4])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that autocast is switched off
        batch = {"x": x, "cond": cond}
        theirs = float(torch_side.loss(network, network, objective, batch, t, eps))
    ours = losses.objective(ObjectiveConfig(name=objective, beta=torch_side.BETA), err, ref, None)
    assert float(abs(err - ref).min()) > 0.01  # the adapter does something
    np.testing.assert_allclose(theirs, float(ours), rtol=2e-5)


@pytest.mark.slow  # compiles twice
def test_each_side_takes_a_step(tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "steps.json"
    run.main([*SMALL, "-f", "^step-dpo/b12/(jax-full|torch-eager)$", "--out", str(out)])
    run.main(
        [*SMALL, "-f", "^(velocity-adapter/b12|sampler/b4)/(jax|torch-eager)$", "--out", str(out)]
    )
    records = {r["name"]: r for r in json.loads(out.read_text())["cases"]}
    assert len(records) == 6 and all(record["ms"] > 0 for record in records.values())
    step = records["step-dpo/b12/jax-full"]
    assert step["tflop_executed"] > step["tflop_needed"] > 0
    text = subprocess.run(
        [sys.executable, "benchmarks/run.py", "--show", out],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    assert text.count("torch-eager") == 3


@pytest.mark.slow
def test_a_case_runs_in_a_process_of_its_own(tmp_path):
    out = tmp_path / "apart.json"
    command = [sys.executable, "benchmarks/run.py", *SMALL, "--apart", "--out", str(out)]
    command += ["-f", "ceiling/attention-cross-forward/jax"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (record,) = json.loads(out.read_text())["cases"]
    assert record["size"] == "small" and record["wall_s"] > record["ms"] / 1e3
