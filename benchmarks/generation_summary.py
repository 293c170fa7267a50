"""What the figures of `generation.py` say together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PAPER = 312_000  # samples of DSO's dataset


def summary(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """Lines for people: the sampler by batch, the share of each stage, the paper's dataset."""
    good = {name: case for name, case in cases.items() if "error" not in case}
    lines = [f"failed: {name}: {case['error']}" for name, case in cases.items() if "error" in case]
    samplers = {name: case for name, case in good.items() if name.startswith("sampler/")}
    if samplers:
        lines.append(f"{'sampler':22}{'ms a call':>12}{'samples/s':>12}{'TFLOP/s':>10}{'GiB':>8}")
        for name, case in sorted(samplers.items(), key=lambda item: item[1]["batch"]):
            lines.append(
                f"{name:22}{case['ms']:12.1f}{case['samples_per_s']:12.2f}"
                f"{case['tflops_executed']:10.1f}{case['temporary_gib']:8.1f}"
            )
    for name, rival in good.items():
        ours = good.get(name.replace("torch/", "sampler/"))
        if name.startswith("torch/") and ours:
            ratio = ours["ms"] / rival["ms"]
            lines.append(f"{name}: {rival['ms']:.1f} ms; ours takes {ratio:.3f} of it")
    for name, case in good.items():
        if name.startswith("job/") and not name.endswith("-cold"):
            lines += _job(name, case, good)
    return "\n".join(lines)


def _job(name: str, job: Mapping[str, Any], cases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The job's own stages, and what each takes of the device where it was timed alone."""
    made, devices = job["samples"], job["devices"]
    # Once a job the last objects roll: of a dataset of hundreds of thousands that is nothing.
    drain = job["stages_s"].get("labels", 0.0)
    rate = made / (job["seconds"] - drain) / devices
    each = 1e3 / rate
    lines = [
        f"{name}: {made} samples in {job['seconds']:.1f} s on {devices} x {job['device']}: "
        f"{job['samples_per_s']:.2f}/s; {devices * rate:.2f}/s, {each:.1f} ms of a device a sample,"
        f" but for the {drain:.1f} s at its end; {job['compiling_s']:.1f} s compiled",
        *(
            f"  host waits: {stage:12}{seconds:8.2f} s{100 * seconds / job['seconds']:7.1f} %"
            for stage, seconds in job["stages_s"].items()
        ),
    ]
    alone = {stage: ms for stage, ms in _alone(job, cases).items() if ms is not None}
    lines += [f"  alone: {stage:12}{ms:10.2f} ms a sample" for stage, ms in alone.items()]
    if sampler := alone.get("sampler"):
        lines.append(f"  outside the sampler: {100 * (1 - sampler / each):.1f} % of the job's time")
        beside = [alone[stage] for stage in ("encode", "labels") if stage in alone]
        if len(beside) == 2:
            share = 100 * sum(beside) / sampler
            lines.append(f"  encoding and labels: {share:.2f} % of the sampling time")
    for count in (1, 4, 8):
        hours = PAPER / (count * rate) / 3600
        cores = job["host_cpu_s_a_sample"] * rate * count
        kind = "measured rate" if count == devices else "no device waits for another"
        lines.append(
            f"  {PAPER} samples on {count}: {hours:.1f} h ({kind}; {cores:.1f} host cores busy)"
        )
    return lines


def _alone(
    job: Mapping[str, Any], cases: Mapping[str, Mapping[str, Any]]
) -> dict[str, float | None]:
    """Milliseconds of the device a sample, by stage; None where it was not timed."""

    def best(prefix: str, metric: str) -> float | None:
        return min((c[metric] for n, c in cases.items() if n.startswith(prefix)), default=None)

    sampler = cases.get(f"sampler/b{job['batch']}", {}).get("ms")
    encode = cases.get("encode/highest", {}).get("ms_a_row")
    rate = max((c["labels_per_s"] for c in cases.values() if "labels_per_s" in c), default=None)
    return {
        "encode": encode and encode / job["samples_a_picture"],
        "sampler": sampler and sampler / job["batch"],
        "decode": cases.get("decode/fp16", {}).get("ms_a_row", best("decode/", "ms_a_row")),
        "labels": rate and 1e3 / rate,
    }
