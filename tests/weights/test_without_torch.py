"""weight_port works where torch is not installed."""

from __future__ import annotations

import subprocess
import sys
import textwrap

PROGRAM = """
    import dataclasses
    import sys

    for name in ("torch", "peft", "transformers"):
        sys.modules[name] = None  # importing it now raises ImportError

    import jax
    from dso_jax.models import FlowConfig, LoRAConfig, init_flow, lora
    import weight_port
    from weight_port import layouts, layouts_write

    config = FlowConfig(resolution=1, model_channels=6, cond_channels=2, num_blocks=1, num_heads=1)
    settings = LoRAConfig(rank=1, alpha=1.0)
    shapes = jax.eval_shape(lambda: init_flow(config, jax.random.key(0), settings))
    params = jax.tree.map(lambda s: jax.numpy.ones(s.shape), shapes)
    weight_port.write_peft_adapter(sys.argv[1], params, settings, base_sha256="0")
    weight_port.read_peft_adapter(sys.argv[1], flow=config)
    state = weight_port.to_torch("flow", config, lora.strip(params), half="bfloat16")
    weight_port.from_torch("flow", config, state)
    adapter = layouts.read(sys.argv[1])
    both = dataclasses.replace(adapter, config=config, params=params)
    for layout in ("base", "dso", "merged"):
        path = f"{sys.argv[1]}/{layout}.safetensors"
        layouts_write.write(path, both, layout)
        layouts.read(path)
    print("done")
"""


def test_no_torch_on_any_path(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "done\n", done.stderr
