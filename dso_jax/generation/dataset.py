"""Prompts -> latents -> labels -> dataset folder: by any number of processes, killed at any moment.

The prompts are cut into numbered blocks, in order; block k is shard k of the folder, whoever makes
it. Processes share nothing but the folder: each makes blocks that are not there yet. The bits of a
block depend on its prompts alone, not on what ran before or beside it, nor on how many devices.
A thread samples blocks while those before are written.

A block is written twice. Once it is sampled, its latents, its conditions and a table without labels
are on the disk. Its objects then drop among those of other blocks; when the last of them has come
to rest, the table with labels is renamed into place, and the block is part of the dataset. A kill
costs the sampling of the blocks that are in the networks (one a device), and of those before if
they are not written yet; what waited for labels is decoded and dropped again.

Shapes: m images and n samples of a block, S condition tokens, D width.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

import sim_mjx
from dso_jax.dataset.layout import SHAPES, shard_path
from dso_jax.dataset.samples import SCHEMA, read_samples
from dso_jax.dataset.shards import Shard
from dso_jax.dataset.writer import DatasetWriter
from dso_jax.errors import UsageError
from dso_jax.generation import blocks as generate_blocks
from dso_jax.generation.blocks import Made, Recipe
from dso_jax.generation.generator import Generator
from dso_jax.generation.labels import Labelling
from dso_jax.generation.outputs import Exhibits, write_meshes
from dso_jax.generation.prompt_sources import Source, fingerprint
from dso_jax.stopwatch import Stopwatch
from sim_mjx import engines

BLOCK = 256  # samples, about: what is written together
NAMED = 20  # prompts that cannot be used and are named in the log; the others are counted
# What stands in a table for a label that is still to come.
_NO_LABEL = {
    **dict.fromkeys(("tilt_deg", "rotation_deg", "margin_deg"), np.nan),
    "status": "invalid",
    "stable": False,
    "protocol": "",
    "engine": "",
}

_log = logging.getLogger(__name__)

Progress = Callable[[str, int], None]  # what has happened to how many


class Report(NamedTuple):
    """What a run did.

    Attributes:
        complete: whether the whole dataset is there now.
        problems: one line for each prompt or sample that had to be left out.
        seconds: stage -> what its thread spent in it; `writing` and `bodies` pass while the next
            blocks are sampled.
        compiling: of these, seconds of compilation.
    """

    complete: bool
    problems: list[str]
    seconds: dict[str, float]
    compiling: float


class _Waiting(NamedTuple):
    """A block whose objects drop: its lines, and what the pictures of it need."""

    shard: int
    lines: Mapping[str, Sequence]
    exhibits: Exhibits | None


class DatasetJob:
    """Makes what is missing of a dataset.

    Args:
        generator: makes the samples.
        source: of the prompts.
        out: the folder; several processes may write to it at once.
        protocol: of the labels.
        recipe: what is made of each prompt.
        origin: more that decides the samples, JSON values for meta.json.
        share: (i, n) makes every n-th block from the i-th on.

    Attributes:
        asked: samples of this share.
        there: of these, samples that are there already.

    Raises:
        UsageError: the folder cannot be written, or was begun with other settings.
    """

    def __init__(
        self,
        generator: Generator,
        source: Source,
        out: Path,
        protocol: sim_mjx.Protocol,
        recipe: Recipe,
        *,
        origin: Mapping[str, Any] | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._generator, self._source, self._recipe = generator, source, recipe
        self._out, self._protocol = out, protocol
        prompts = max(1, BLOCK // recipe.samples)
        rows = np.arange(len(source.objects))
        self._blocks = [rows[i : i + prompts] for i in range(0, len(rows), prompts)]
        self._order = list(range(share[0], len(self._blocks), share[1]))
        self._writer = DatasetWriter(out, self._settings() | dict(origin or {}))
        sizes = [recipe.samples * len(block) for block in self._blocks]
        self.asked = sum(sizes[shard] for shard in self._order)
        self.there = self.asked - sum(sizes[shard] for shard in self._missing(self._order))
        self._engine = engines.resolve("mjx", "slim")
        self._watch, self._problems = Stopwatch(), []

    def _settings(self) -> dict[str, Any]:
        recipe, source = self._recipe, self._source
        seen = ("conditions", "images") if recipe.store == "both" else (recipe.store,)
        shapes = {
            "latents": self._generator.latent_shape,
            "conditions": source.condition_shape,
            "images": source.image_shape,
        }
        return {
            **self._generator.settings(),
            "protocol": self._protocol.hash(),
            "seed": recipe.seed,
            "samples": [recipe.first, recipe.first + recipe.samples],
            "prompts": f"{len(source.objects)}, sha256 of their names {fingerprint(source)[:16]}",
            "block": BLOCK,
            # Known beforehand, so that meta.json is the first file that is written.
            **{SHAPES[kind]: list(shapes[kind]) for kind in ("latents", *seen)},
        }

    def run(
        self, *, meshes: bool = False, strict: bool = False, progress: Progress | None = None
    ) -> Report:
        """Makes and labels the blocks of this share that nobody has made.

        Args:
            meshes: also write the surface of every solid: OUT/meshes/CATEGORY/OBJECT/IMG_EEE.glb.
            strict: stop at the first prompt that cannot be used.
            progress: called with what has happened to how many samples, from any thread: `sample`,
                `drop`, then `stable`, `unstable` or `invalid`, and `moving` of these.

        Raises:
            UsageError: `strict` met a problem, or no prompt could be used.
        """
        self._strict, self._tell = strict, progress or (lambda stage, count: None)
        order = self._order
        if not self._writer.alone and order:
            # Others are at work: not at the same blocks, or all of us would make the same.
            start = random.randrange(len(order))
            order = order[start:] + order[:start]
        also = self._write_meshes if meshes else None
        dropped = functools.partial(self._tell, "drop")
        with self._watch.compilation():
            while todo := self._missing(order):
                labelling = Labelling(self._protocol, self._label, also=also, progress=dropped)
                with labelling:
                    self._go_on(todo, labelling)
                    self._make(todo, labelling)
                    with self._watch("labels"):
                        labelling.drain()
        complete = not self._missing(range(len(self._blocks)))
        if complete and not self._writer.finish():
            first = self._problems[0] if self._problems else "see the run that began it"
            raise UsageError(f"{self._out}: no prompt could be used, first {first}")
        return Report(complete, self._problems, dict(self._watch.seconds), self._watch.compiling)

    def _missing(self, order: Iterable[int]) -> list[int]:
        there = self._writer.shards()
        return [shard for shard in order if shard not in there]

    def _go_on(self, todo: Sequence[int], labelling: Labelling) -> None:
        """Decodes and drops what was sampled and has no labels, by a job that was killed."""
        for shard, path in self._writer.unlabelled().items():
            if shard not in todo:
                continue
            lines = {name: values.tolist() for name, values in read_samples(path).items()}
            place = shard_path(self._out, "latents", shard)
            stored = Shard.open(place, "latents", self._generator.latent_shape)
            latents = np.stack([stored.row(row) for row in range(len(stored))])
            images = None
            if shard == 0:
                images = next(self._source.load([self._blocks[shard]])).images
            self._tell("sample", len(latents))
            with self._watch("decoding"):
                logits = self._generator.logits(latents, [len(latents)])
            self._drop(shard, lines, images, logits, labelling)

    def _make(self, todo: Sequence[int], labelling: Labelling) -> None:
        """Samples what nobody has sampled yet."""

        def blocks() -> Iterator[tuple[int, np.ndarray]]:
            for shard in todo:
                # In this order: one that waits for its labels may get them meanwhile.
                waiting = self._writer.unlabelled()
                if shard not in waiting and shard not in self._writer.shards():
                    yield shard, self._blocks[shard]

        made = generate_blocks.make(
            self._generator, self._source, self._recipe, blocks(), self._watch
        )
        with contextlib.closing(made):
            for shard, block in made:
                self._note(block.problems)
                self._tell("sample", len(block.latents))
                if not len(block.latents):
                    self._writer.label(shard, {name: [] for name in SCHEMA.names})
                    continue
                with self._watch("writing"):
                    lines = self._write(shard, block)
                self._drop(shard, lines, block.images, block.logits, labelling)

    def _write(self, shard: int, block: Made) -> dict[str, list]:
        """Keeps a block; it waits for its labels."""
        store, count = self._recipe.store, len(block.latents)
        return self._writer.append(
            block.lines | {name: [value] * count for name, value in _NO_LABEL.items()},
            block.latents,
            None if store == "images" else block.conditions,
            None if store == "conditions" else block.images,
            shard=shard,
            labelled=False,
        )

    def _drop(self, shard, lines, images, logits, labelling: Labelling) -> None:
        exhibits = Exhibits.of(lines, images, logits) if shard == 0 else None
        with self._watch("bodies"):
            labelling.put(_Waiting(shard, lines, exhibits), logits)

    def _label(self, waiting: _Waiting, rest: sim_mjx.Rest, margin: np.ndarray) -> None:
        """Commits a block; runs in the labelling's thread."""
        count, stable = len(margin), rest.stable(self._protocol)
        lines = dict(waiting.lines) | {
            "tilt_deg": rest.tilt_deg,
            "rotation_deg": rest.rotation_deg,
            "status": rest.status.astype(str),
            "margin_deg": margin,
            "stable": stable,
            "protocol": [self._protocol.hash()] * count,
            "engine": [f"{self._engine.name} {self._engine.version}"] * count,
            "source": ["occupancy"] * count,
        }
        if waiting.exhibits:
            waiting.exhibits.write(self._out, lines, rest)
        self._writer.label(waiting.shard, lines)
        invalid = rest.status == "invalid"
        self._tell("drop", int(invalid.sum()))
        self._tell("invalid", int(invalid.sum()))
        self._tell("moving", int((rest.status == "moving").sum()))
        self._tell("stable", int(stable.sum()))
        self._tell("unstable", int((~invalid & ~stable).sum()))

    def _write_meshes(self, waiting: _Waiting, logits: Float[np.ndarray, "N R R R"]) -> None:
        write_meshes(self._out, waiting.lines, logits, self._protocol.saturation)

    def _note(self, problems: Sequence[str]) -> None:
        for problem in problems:
            if self._strict:
                raise UsageError(f"--strict: {problem}")
            self._problems.append(problem)
            if len(self._problems) <= NAMED:
                _log.warning("%s", problem)
