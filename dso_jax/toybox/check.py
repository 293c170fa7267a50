"""Is a toybox generator fit for its purpose? Figures over held-out objects, by dropping everything.

The autoencoder must keep the labels of true objects, and the flow must be good enough that its
samples resemble what they were asked for and bad enough that some of them fall.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

import sim_mjx
from dso_jax import pretrained
from dso_jax.evaluation import evaluate
from dso_jax.generation import generate
from dso_jax.generation.prompts import toybox_prompts
from dso_jax.toybox import FAMILIES
from dso_jax.toybox.pretrain import encode

CERTAIN = 1.0  # logit that stands for a true voxel


def check(folder: str, protocol: sim_mjx.Protocol, objects: int, samples: int) -> dict[str, float]:
    """Figures of the generator in `folder`, over `objects` held-out objects.

    Returns:
      truth_stable: share of true objects that stand
      label_kept: share whose label survives encoding and decoding
      reconstruction_iou: of the decoded occupancy with the true one
      stable: share of the flow's samples that stand
      iou, iou_shuffled, iou_shuffled_family: mean IoU of samples with the object they were asked
        for, with another object, and with another object of the same family
      broken: share of samples in several parts, or empty
    """
    base = pretrained.load(folder)
    _, encoder, _ = pretrained.load_model(pretrained.resolve(folder), pretrained.ENCODER)
    prompts = toybox_prompts("heldout", objects)
    solid = prompts.truth
    assert solid is not None
    latents = np.asarray(encode(encoder, jnp.asarray(solid), batch=generate.BATCH))

    truth = generate.label(np.where(solid, CERTAIN, -CERTAIN), protocol)
    decoded = generate.label(generate.decode(base, latents), protocol)
    stands = truth.rest.stable(protocol)
    sampled = evaluate.evaluate(base, base.flow_params, prompts, protocol, samples=samples)
    made = sampled.labelled.logits > 0

    def iou_with(shift: int) -> float:
        other = np.repeat(np.roll(solid, shift, axis=0), samples, axis=0)
        return float(evaluate.iou(made, other).mean())

    columns = sampled.columns
    return {
        "truth_stable": float(stands.mean()),
        "label_kept": float((stands == decoded.rest.stable(protocol)).mean()),
        "reconstruction_iou": float(evaluate.iou(decoded.logits > 0, solid).mean()),
        "stable": sampled.stable,
        "iou": float(columns["iou"].mean()),
        "iou_shuffled": iou_with(5),
        # Families take turns, so this many objects further the same family comes again.
        "iou_shuffled_family": iou_with(len(FAMILIES)),
        "broken": float(((columns["components"] > 1) | columns["empty"]).mean()),
    }
