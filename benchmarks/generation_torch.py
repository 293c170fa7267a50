"""The sampler's rival: torch.compile on the same batch, without an adapter."""

from __future__ import annotations

import argparse
import re
from unittest import mock

import torch

from benchmarks import measure, torch_side

REPEATS, WARM_UPS = 2, 1  # calls of some ten seconds each


def run(record, batches: list[int], options: argparse.Namespace) -> None:
    """The batches as for our sampler; the model computes the condition of every sample anew."""
    # Two sizes of batch come by, with guidance and without: a program of its own for each is the
    # faster one.
    torch._dynamo.config.automatic_dynamic_shapes = False  # type: ignore[attr-defined]
    network = torch_side.network

    def plain(size: measure.Size):
        model = network(size)
        torch_side.enable_adapter(model, False)
        return model

    size = "small" if options.size == "tiny" else "full"
    with (
        mock.patch.object(torch_side, "network", plain),
        mock.patch.object(measure, "WARM_UPS", WARM_UPS),
    ):
        for batch in batches:
            name = f"torch/b{batch}"
            if re.search(options.cases, name):
                one = measure.Run(size, REPEATS)
                about = {"batch": batch} | torch_side.describe()
                record.run(
                    name, lambda b=batch, r=one: torch_side.sampler(r, b, "compile"), **about
                )
