"""The figures of a run as a table, each variant beside compiled torch."""

from __future__ import annotations

from typing import Any

RIVAL = "torch-compile"
HEAD = ("case", "ms", "min", "max", "GiB", "TFLOP/s", "time", "memory")


def table(records: list[dict[str, Any]]) -> str:
    """One line a case; `time` and `memory` are shares of the rival's in the same group."""
    by_name = {record["name"]: record for record in records}
    lines: list[tuple[str, ...]] = [HEAD]
    for name, record in by_name.items():
        if "error" in record:
            lines.append((name, record["error"], *[""] * 6))
        elif "ms" in record:
            rival = by_name.get(f"{name.rpartition('/')[0]}/{RIVAL}", {})
            lines.append((name, *_columns(record, rival)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def memory(record: dict[str, Any]) -> float | None:
    """What a case took of the device: by the allocator, or as XLA planned it."""
    return record.get("compiler_gib" if "compiler_gib" in record else "peak_gib")


def _columns(record: dict[str, Any], rival: dict[str, Any]) -> list[str]:
    held, rate = memory(record), record.get("tflops_executed")
    theirs = memory(rival)
    return [
        *(f"{record[key]:.2f}" for key in ("ms", "ms_min", "ms_max")),
        "" if held is None else f"{held:.2f}",
        "" if rate is None else f"{rate:.3g}",
        f"{record['ms'] / rival['ms']:.3f}" if "ms" in rival else "",
        f"{held / theirs:.3f}" if held and theirs else "",
    ]
