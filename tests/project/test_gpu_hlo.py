"""benchmarks/gpu_hlo.py: kernels of a GPU program counted as by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu_hlo, hlo_cost

PROGRAM = Path(__file__).with_name("gpu_program.hlo").read_text(encoding="utf-8")
SLICE, STACK = 2 * 8 * 64, 2 * 3 * 8 * 64  # bytes
INDEX = 4  # a kernel reads where its slice is


def test_a_program_is_counted_as_by_hand():
    found = {kernel.op.name: kernel for kernel in hlo_cost.kernels(PROGRAM)}
    seen = {name: (kernel.kind, kernel.turns, kernel.flops) for name, kernel in found.items()}
    scores = 2 * (2 * 4 * 2 * 16) * 6  # one product of queries and keys
    assert seen == {
        "read": ("copy", 3, 0),
        "matmul": ("product", 3, 2 * 8 * 64 * 32),
        "gelu": ("elementwise", 3, 0),
        "flash": ("attention forward", 3, 2 * scores),
        "back": ("attention backward", 3, 5 * scores),
        "write": ("copy", 3, 0),
        "copy": ("copy", 1, 0),
    }
    assert found["read"].bytes == 2 * SLICE + INDEX  # not the stack
    assert found["write"].bytes == 2 * SLICE + INDEX  # in place
    assert found["gelu"].bytes == 2 * 2 * 8 * 32
    assert found["copy"].bytes == 2 * STACK
    expected = hlo_cost.LAUNCH + 2 * STACK / hlo_cost.BANDWIDTH
    assert found["copy"].seconds == pytest.approx(expected)


def test_without_the_compiler_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(gpu_hlo, "cuda_plugins", list)
    with pytest.raises(SystemExit) as stopped:
        gpu_hlo.main(["-f", "full"])
    assert stopped.value.code == 2
    assert "pip install 'jax[cuda12]'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu_hlo.main(["-f", "no such way"])
    assert "matches none of none, dots, full, products" in capsys.readouterr().err
