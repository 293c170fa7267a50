"""What a training run is: one frozen dataclass a section, one line of explanation a field.

`configs/*.yaml` list only what differs from the defaults here; the command line overrides both.
Defaults are the paper's settings (DSO, arXiv 2503.22677, and its released code).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from dso_jax.models.config import Execution, LoRAConfig
from dso_jax.objectives import ObjectiveConfig


@dataclass(frozen=True)
class OptimConfig:
    """AdamW on the trainable leaves alone."""

    learning_rate: float = 5e-6
    """Constant after the warm-up."""
    warmup_steps: int = 2000
    """Updates of linear warm-up: the first has rate 0, number `warmup_steps` the full rate."""
    weight_decay: float = 0.01
    """Decoupled decay, on every trainable leaf (LoRA A and B)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean and of the running square of the gradient."""
    eps: float = 1e-8
    """Added to the root of the running square."""
    clip_norm: float = 1.0
    """Upper bound on the global norm of the trainable gradients; 0 switches clipping off."""


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    steps: int = 4000
    """Optimizer steps. The paper takes 4000 for DRO and 8000 for DPO and SFT."""
    batch_size: int = 48
    """Pairs an optimizer step, over all devices (unpaired DRO: twice as many single samples)."""
    accumulation: int = 1
    """Parts into which a step's batch is split to save memory; the gradient is the same."""
    seed: int = 0
    """Decides the adapter's start, the pairs, times and noise."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl; steps 0 and the last are always there."""
    eval_every: int = 500
    """Steps between held-out evaluations (sample, drop, count); 0 evaluates never."""
    checkpoint_every: int = 500
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Newest checkpoints that stay, beside the best by held-out stability."""
    max_skipped: int = 3
    """Steps in a row with a loss or gradient that is not finite before the run stops."""
    init_adapter: str | None = None
    """Adapter to start from instead of a fresh one: an earlier run, a PEFT folder, or a DSO
    checkpoint, of this base and with the settings of `lora`. DPO's reference is still the base
    alone; to make it the earlier round, train on that round's `dso export --layout merged`."""
    overwrite: bool = False
    """Throw away what an earlier run left in `out`, instead of resuming it."""


@dataclass(frozen=True)
class SamplerOverride:
    """Sampler of the held-out evaluation; what is None stays as the base was published."""

    steps: int | None = None
    """Euler steps."""
    rescale_t: float | None = None
    """Timesteps are s t / (1 + (s - 1) t): above 1, more of them are near the noise."""
    guidance_weight: float | None = None
    """Weight w of classifier-free guidance: (1 + w) conditional - w unconditional."""
    guidance_interval: tuple[float, float] | None = None
    """Times between which guidance is on."""


@dataclass(frozen=True)
class EvalConfig:
    """Held-out evaluation during training; decides which checkpoint is the best."""

    objects: int = 0
    """Held-out objects; 0 evaluates never."""
    skip: int = 512
    """Held-out objects passed over first, which are left for the comparison of finished runs:
    figures on the objects that chose the best checkpoint would flatter it."""
    samples: int = 2
    """Samples an object, with the same noise at every evaluation."""
    protocol: str = "fast"
    """Simulation protocol that labels them: a preset's name or a YAML file."""


@dataclass(frozen=True)
class GuardConfig:
    """Rules that save and stop a run going bad (exit code 3); None switches one off."""

    max_win_rise: float | None = None
    """How far winners' error may rise above the reference's, as a share of it: 0.2 stops at 20 %.
    A policy that only flees from losers takes its winners along."""
    max_ref_distance: float | None = None
    """Bound on the mean squared difference of policy's and reference's velocities."""
    window: int = 5
    """Lines of the log that are averaged, since one batch is noisy."""


@dataclass(frozen=True)
class SystemConfig(Execution):
    """How the arithmetic is carried out, and where; none of it changes what is computed beyond
    rounding."""

    norms: Literal["xla"] = "xla"
    """Norms of the torso, by XLA: the kernels that sampling has on a GPU have no derivative."""
    xla: tuple[str, ...] = ()
    """Options of the compiler for the training step, each `name=value` as in XLA_FLAGS without the
    dashes: `xla_gpu_enable_triton_gemm=false`."""
    fsdp: int = 1
    """Devices that share one copy of the base, a part each, and gather a block when it is its turn;
    1 keeps the whole base on every device."""
    self_test: float = 120.0
    """Seconds in which all devices must have summed a number each, before anything is loaded; 0
    leaves the test out."""
    coordinator: str | None = None
    """HOST:PORT of the first of several processes; None leaves it to SLURM, Open MPI or Kubernetes
    (an Indexed Job), as JAX detects them."""
    processes: int | None = None
    """How many processes train together; None as above, 1 trains alone whatever they say."""
    process: int | None = None
    """Number of this process, from 0; None as above."""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise ValueError(f"system.{error}") from None

    @property
    def execution(self) -> Execution:
        """The part that the transformer is made with."""
        fields = dataclasses.fields(Execution)
        return Execution(**{field.name: getattr(self, field.name) for field in fields})


@dataclass(frozen=True)
class Config:
    """Fine-tune a flow transformer so that what it makes stands."""

    base: str = "toybox"
    """Published generator to start from: a name, or the folder that holds it."""
    data: str = "runs/data"
    """Dataset folder: labelled samples of that generator."""
    conditions: Literal["stored", "online"] = "stored"
    """Conditions as the dataset folder has them, or computed by `image_encoder` from the images
    that it has: less to store and to read, for about 3 % of a step."""
    image_encoder: str | None = None
    """The DINOv2 that computes them: a name of the torch hub, or a file or folder of its weights;
    None takes the one through which the samples were made. Runs in `system.dtype`."""
    out: str = "runs/train"
    """Run folder: config.yaml, metrics.jsonl, checkpoints/, adapter/. An unfinished run resumes."""
    trainable: tuple[str, ...] = ("lora",)
    """What trains: `lora`, `all`, or regular expressions over names like
    `blocks/cross_attn/to_q/lora_A`."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sampler: SamplerOverride = field(default_factory=SamplerOverride)
    eval: EvalConfig = field(default_factory=EvalConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    system: SystemConfig = field(default_factory=SystemConfig)
