"""LoRA adapters as PEFT saves them: `adapter_model.safetensors` and `adapter_config.json`.

On disk the names have the prefix `base_model.model.` and no adapter name; a torch user loads the
folder with `PeftModel.from_pretrained(model, folder)`.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from dso_jax import __version__
from dso_jax.models import FlowConfig, LoRAConfig, init_flow
from dso_jax.models.lora import adapter_leaves
from weight_port import convert, files, peft_config, tables
from weight_port.errors import Problem, WeightError, report
from weight_port.peft_config import CONFIG
from weight_port.rules import Rule

log = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"
RULES = tables.adapter(tables.FLOW)
# Keys of a header that our writers set; what else is there belongs to the run.
PROVENANCE = ("format", "layout", "dso_jax_version", "base_sha256", "rank", "alpha", "targets")


def write_peft_adapter(
    directory: str | Path,
    params: Mapping,
    lora: LoRAConfig,
    *,
    base_sha256: str | None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes the LoRA leaves of `params` as a PEFT folder, in fp32.

    Each of the two files is replaced whole; the weights repeat rank, alpha and targets in their
    metadata, so that a reader notices a pair that does not belong together.

    Args:
      params: a tree that holds the adapter, with or without its base.
      base_sha256: of the base weights that the adapter was trained on; None leaves it unsaid.
      metadata: further texts for the header of the weights.

    Raises:
      WeightError: `params` and `lora` do not fit together; nothing is written.
    """
    adapter = adapter_leaves(dict(params))
    if not adapter:
        raise WeightError("the parameters hold no LoRA leaves: there is no adapter to write")
    _check_fit(adapter, lora)
    tensors = convert.export(
        convert.plan(RULES, adapter), adapter, cast=convert.Cast(dtype=np.float32)
    )
    texts = provenance(lora, base_sha256, metadata)
    directory = Path(directory)
    text = json.dumps(peft_config.render(lora), indent=2, sort_keys=True) + "\n"
    files.write(directory / WEIGHTS, tensors, texts)
    files.atomically(directory / CONFIG, lambda file: file.write(text.encode()))


def read_peft_adapter(
    directory: str | Path, *, flow: FlowConfig | None = None, base_sha256: str | None = None
) -> tuple[dict, LoRAConfig]:
    """Reads a PEFT folder -> (adapter tree of fp32 numpy arrays, its LoRA configuration).

    All tensors of the file are used or none: a partial match is an error. Attach the tree with
    `dso_jax.models.lora.with_adapter(base, adapter)`.

    Args:
      flow: the model it is meant for; then every target linear of every block must be there.
      base_sha256: of that model's weights; an adapter trained on others is an error.

    Raises:
      WeightError: names the file, and the tensors or the setting that do not fit.
    """
    directory = Path(directory)
    settings = peft_config.read(directory / CONFIG)
    tensors, texts = files.read(directory / WEIGHTS)
    if not tensors:
        raise WeightError(f"{directory / WEIGHTS}: holds no tensor")
    targets = _targets(directory, settings["target_modules"], tensors)
    lora = LoRAConfig(int(settings["r"]), float(settings["lora_alpha"]), targets)
    check_provenance(str(directory / WEIGHTS), lora, texts, base_sha256)
    if flow is None:
        expected = _infer(directory, tensors, lora)
    else:
        make = jax.eval_shape(lambda key: init_flow(flow, key, lora), jax.random.key(0))
        expected = adapter_leaves(make)
    slots = convert.plan(RULES, expected)
    adapter = convert.load(
        slots,
        tensors,
        source=str(directory / WEIGHTS),
        target=f"a LoRA adapter with {lora}",
        cast=convert.Cast(dtype=np.float32),
    )
    matched = sum(len(slot.names) for slot in slots)
    log.info("%s: matched %d of %d tensors", directory, matched, len(tensors))
    return adapter, lora


def provenance(
    lora: LoRAConfig, base_sha256: str | None, metadata: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Texts for the header of a file that has an adapter in it, `metadata` among them.

    Raises:
      WeightError: `metadata` has a key that is the writer's own.
    """
    clash = sorted(set(PROVENANCE) & set(metadata or {}))
    if clash:
        raise WeightError(f"metadata: {', '.join(clash)} is set by the writer")
    return {
        "format": "pt",
        "dso_jax_version": __version__,
        **({} if base_sha256 is None else {"base_sha256": base_sha256}),
        **_settings(lora),
        **(metadata or {}),
    }


def check_provenance(
    source: str, lora: LoRAConfig, texts: Mapping[str, str], base_sha256: str | None
) -> None:
    """Compares the header of `source` with the adapter's settings and with its base, if given.

    Raises:
      WeightError: they contradict each other.
    """
    for key, value in _settings(lora).items():
        if texts.get(key, value) != value:
            raise WeightError(
                f"{source}: adapter and header do not belong together: "
                f"{key} is {value} in one and {texts[key]} in the other"
            )
    recorded = texts.get("base_sha256")
    if base_sha256 is not None and recorded is None:
        log.warning("%s does not say which base it was trained on", source)
    elif base_sha256 is not None and recorded != base_sha256:
        raise WeightError(
            f"{source}: trained on a base with sha256 {recorded}, this one has {base_sha256}"
        )


def _settings(lora: LoRAConfig) -> dict[str, str]:
    return {
        "rank": str(lora.rank),
        "alpha": repr(float(lora.alpha)),
        "targets": ",".join(sorted(lora.targets)),
    }


def _check_fit(adapter: Mapping, lora: LoRAConfig) -> None:
    """A and B of every target, of the stated rank, and of nothing else."""
    flat = convert.flatten(adapter)
    problems = []
    for path, leaf in flat.items():
        module, name = path.rsplit("/", 1)
        rank = leaf.shape[-1] if name == "lora_A" else leaf.shape[-2]
        if rank != lora.rank:
            problems.append(Problem("shape", path, f"has rank {rank}, expected {lora.rank}"))
        if module.rsplit("/", 1)[-1] not in lora.targets:
            problems.append(Problem("unexpected", path, "is no target of the LoRA configuration"))
        other = f"{module}/{'lora_B' if name == 'lora_A' else 'lora_A'}"
        if other not in flat:
            problems.append(Problem("missing", other))
    adapted = {path.split("/")[-2] for path in flat}
    problems += [Problem("missing", t, "no linear") for t in lora.targets if t not in adapted]
    if problems:
        raise report("the adapter", f"{lora}", problems)


def _targets(
    directory: Path, stated: list | str, tensors: Mapping[str, np.ndarray]
) -> tuple[str, ...]:
    """Names of the adapted linears, from the tensors; the stated list must say the same.

    PEFT also takes a regular expression, or a list of longer names; those are not compared.
    """
    rules = {name: rule for name in tensors if (rule := _rule_of(name))}
    found = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in rules}
    if not found:
        problems = [Problem("unexpected", name) for name in tensors]
        target = f"a LoRA adapter of the flow model, 0 of {len(tensors)} matched"
        raise report(
            str(directory / WEIGHTS),
            target,
            problems,
            hint=convert.hint(problems, ["x.lora_A.weight"]),
        )
    if isinstance(stated, list) and not any("." in str(name) for name in stated):
        absent = sorted(set(map(str, stated)) - found)
        if absent:
            raise WeightError(
                f"{directory}: {CONFIG} lists the target {', '.join(absent)}, "
                f"but {WEIGHTS} has no tensor of it"
            )
    return tuple(sorted(found))


def _rule_of(name: str) -> Rule | None:
    return next((rule for rule in RULES if rule.to_ours(name) is not None), None)


def _infer(directory: Path, tensors: Mapping[str, np.ndarray], lora: LoRAConfig) -> dict:
    """The adapter's tree of shapes from its names: as many blocks as there are numbers of them."""
    leaves: dict[str, tuple[int, ...]] = {}
    stacked: set[str] = set()
    blocks: set[int] = set()
    for name, tensor in tensors.items():
        rule = _rule_of(name)
        if rule is None or (found := rule.to_ours(name)) is None or tensor.ndim != 2:
            continue  # `convert.load` reports it
        path, block = found
        out, fan_in = tensor.shape
        leaves[path] = (fan_in, lora.rank) if path.endswith("lora_A") else (lora.rank, out)
        if block is not None:
            stacked.add(path)
            blocks.add(block)
    modules = Counter(path.rsplit("/", 1)[0] for path in leaves)
    for module, halves in modules.items():
        if halves != 2:
            raise WeightError(f"{directory / WEIGHTS}: {module} has only one of lora_A and lora_B")
    tree = {
        path: jax.ShapeDtypeStruct((len(blocks), *shape) if path in stacked else shape, np.float32)
        for path, shape in leaves.items()
    }
    return convert.unflatten(tree)
