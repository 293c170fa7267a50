"""The heavy parts of the demo, on the embedded generator."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

import sim_mjx
import train
import weight_port
from dso_jax import config_io, pretrained, toybox
from dso_jax.config import Config, EvalConfig
from dso_jax.demo import DemoConfig
from dso_jax.errors import UsageError
from dso_jax.evaluation import evaluate
from dso_jax.generation import prompts
from dso_jax.generation.blocks import Recipe
from dso_jax.generation.dataset import DatasetJob
from dso_jax.generation.generator import Generator
from dso_jax.generation.prompt_sources import ToyboxSource
from dso_jax.models import lora
from dso_jax.report import gallery
from dso_jax.training.metrics import progress_bar


class ToyboxWork:
    """Does what `dso_jax.demo.Work` describes.

    Raises:
        UsageError: the protocol or the embedded weights cannot be used.
    """

    def __init__(self, config: DemoConfig) -> None:
        self._config = config
        try:
            self._protocol = sim_mjx.Protocol.resolve(config.protocol)
        except sim_mjx.ProtocolError as error:
            raise UsageError(str(error)) from None
        self._base = pretrained.load("toybox")

    def describe(self) -> dict:
        """See `Work.describe`."""
        device = jax.devices()[0]
        return {
            "base": {"name": self._base.name, "sha256": self._base.sha256},
            "protocol": {"name": self._config.protocol, "hash": self._protocol.hash()},
            "device": f"{jax.device_count()} x {device.platform} {device.device_kind}",
        }

    def training(self, method: str, seed: int) -> dict:
        """See `Work.training`; without the paths, which decide nothing."""
        config = self._training(method, seed, Path(), Path())
        return dataclasses.asdict(dataclasses.replace(config, data="", out=""))

    def sample(self, seed: int, out: Path) -> None:
        """See `Work.sample`."""
        config = self._config
        total = config.preference_objects * config.preference_samples
        with _counting("sample", total) as count:
            job = DatasetJob(
                Generator.of(self._base, devices=jax.local_devices()[:1]),
                ToyboxSource("preference", config.preference_objects),
                out,
                self._protocol,
                Recipe(samples=config.preference_samples, seed=seed),
            )
            count(job.there)
            job.run(progress=lambda stage, more: count(more) if stage == "drop" else None)

    def train(self, method: str, seed: int, data: Path, out: Path) -> None:
        """See `Work.train`.

        Raises:
            KeyboardInterrupt: the training was stopped, and has saved where it was.
        """
        if not train.main(self._training(method, seed, data, out), base=self._base).finished:
            raise KeyboardInterrupt

    def evaluate(self, seed: int, adapter: Path | None) -> dict[str, np.ndarray]:
        """See `Work.evaluate`."""
        config, base, params, settings = self._config, self._base, self._base.flow_params, None
        if adapter is not None:
            leaves, settings = weight_port.read_peft_adapter(
                adapter, flow=base.flow_config, base_sha256=base.sha256
            )
            params = lora.with_adapter(base.flow_params, leaves)
        with _counting("evaluate", config.heldout_objects * config.heldout_samples) as count:
            found = evaluate.evaluate(
                base,
                params,
                self._heldout,
                self._protocol,
                samples=config.heldout_samples,
                seed=seed,
                lora=settings,
                progress=count,
            )
        images = np.repeat(self._heldout.images, config.heldout_samples, axis=0)
        labelled = found.labelled
        pictured = gallery.keep(
            toybox.image_to_uint8(images), labelled.rest.quaternion, labelled.logits
        )
        return found.columns | pictured

    @functools.cached_property
    def _heldout(self) -> prompts.Prompts:
        return prompts.toybox_prompts("heldout", self._config.heldout_objects)

    def _training(self, method: str, seed: int, data: Path, out: Path) -> Config:
        """The method's configuration file, without evaluation: the held-out objects come last."""
        config = config_io.load(configs_folder() / f"toybox-{method}.yaml")
        steps = self._config.steps or config.train.steps
        return dataclasses.replace(
            config,
            data=str(data),
            out=str(out),
            train=dataclasses.replace(config.train, seed=seed, steps=steps, eval_every=0),
            eval=EvalConfig(objects=0),
        )


def configs_folder() -> Path:
    """The folder of YAML files: inside an installed package, at the top of a checkout."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


@contextlib.contextmanager
def _counting(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar that is fed with numbers of samples that have just finished."""
    with progress_bar(name, 0, total) as update:
        finished = 0

        def count(more: int) -> None:
            nonlocal finished
            finished += more
            update(finished)

        yield count
