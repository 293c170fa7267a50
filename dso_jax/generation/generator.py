"""A generator on the devices of this process: conditions -> latents -> occupancy.

Each device holds a copy of the weights and takes whole batches in turn; no device waits for
another. So a sample has the same bits on any number of devices.

Shapes: M conditions, N samples, S tokens, D width, C channels and r edge of latents, R of grids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dso_jax.dataset.layout import DECODER_DTYPE
from dso_jax.generation import batches, generate
from dso_jax.generation.batches import Progress
from dso_jax.models import Execution, LoRAConfig, norm_kernels
from dso_jax.pretrained import Base


def fast_execution() -> Execution:
    """How the transformer samples in bf16 on a GPU.

    No product whose result is cut in three, and kernels of norms where they work.
    """
    return Execution(dtype="bfloat16", projections="split", norms=norm_kernels.choice())


@dataclasses.dataclass(frozen=True)
class Generator:
    """A base, perhaps with an adapter.

    Attributes:
        base: as it was published; its sampler is the one that is used.
        flow: parameters of the transformer, a copy for each device; with LoRA leaves if `lora`.
        decoder: those of the structure decoder.
        lora: the adapter's settings.
        adapter: what names the adapter in a dataset's meta.json.
        execution: how the transformer is carried out. Its type is that of what is stored, too.
        decoder_dtype: of the decoder's torso.
        batch: samples a network call. Another one changes the last bits of a sample.
    """

    base: Base
    flow: Sequence[Mapping]
    decoder: Sequence[Mapping]
    lora: LoRAConfig | None = None
    adapter: str | None = None
    execution: Execution = dataclasses.field(default_factory=Execution)
    decoder_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    batch: int = generate.BATCH

    @classmethod
    def of(
        cls,
        base: Base,
        params: Mapping | None = None,
        *,
        devices: Sequence[Any] | None = None,
        **fields: Any,
    ) -> Generator:
        """Puts copies of the weights on devices, by default on all local ones.

        Args:
            params: of the flow, if they are not the base's own.
            fields: others of this class.
        """
        devices = jax.local_devices() if devices is None else devices
        flow = batches.copies(base.flow_params if params is None else params, devices)
        return cls(base, flow, batches.copies(base.decoder_params, devices), **fields)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, r, r, r)."""
        return self.base.flow_config.in_channels, *(self.base.flow_config.resolution,) * 3

    @property
    def dtype(self) -> np.dtype:
        """Of latents and conditions as they are stored."""
        return np.dtype(jnp.dtype(self.execution.dtype))

    def settings(self) -> dict[str, Any]:
        """What decides a sample, JSON values."""
        found = {
            "base": self.base.name,
            "base_sha256": self.base.sha256,
            "adapter": self.adapter,
            "sampler": dataclasses.asdict(self.base.sampler),
            "dtype": self.execution.dtype,
            "batch": self.batch,
        }
        # Absent is fp32, as in folders that were begun before there was a choice.
        return found | (
            {} if self.decoder_dtype == "float32" else {DECODER_DTYPE: self.decoder_dtype}
        )

    def latents(
        self,
        conditions: Float[np.ndarray, "M S D"],
        draws: np.ndarray,
        groups: Sequence[int],
        progress: Progress | None = None,
    ) -> Float[np.ndarray, "N C r r r"]:
        """As `generate.sample_latents`, in the type in which they are stored."""
        found = generate.sample_latents(
            self.base,
            self.flow,
            conditions,
            draws,
            lora=self.lora,
            execution=self.execution,
            batch=self.batch,
            groups=groups,
            progress=progress,
        )
        return found.astype(self.dtype)

    def logits(
        self,
        latents: Float[np.ndarray, "N C r r r"],
        groups: Sequence[int],
        progress: Progress | None = None,
    ) -> Float[np.ndarray, "N R R R"]:
        """Occupancy of latents as they are stored, so that decoding those gives the same solid."""
        rows = np.asarray(latents, np.float32)
        return generate.decode(
            self.base,
            rows,
            params=self.decoder,
            batch=self.batch,
            groups=groups,
            dtype=self.decoder_dtype,
            progress=progress,
        )
