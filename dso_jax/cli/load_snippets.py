"""The README of an exported folder: what it is, and the lines of Python that load it in torch."""

from __future__ import annotations

from dso_jax import __version__
from dso_jax.pretrained.pipeline import FLOW
from weight_port.layouts import Checkpoint

_MERGED = """\
A TRELLIS pipeline folder. The adapter is folded into the flow model; nothing else is needed:

```python
from trellis.pipelines import TrellisImageTo3DPipeline

pipeline = TrellisImageTo3DPipeline.from_pretrained("THIS_FOLDER")
```
"""
_PEFT = """\
An adapter of the flow model. With `pipeline`, a TrellisImageTo3DPipeline of the base:

```python
from peft import PeftModel

flow = pipeline.models["{role}"]
pipeline.models["{role}"] = PeftModel.from_pretrained(flow, "THIS_FOLDER")
```
"""
_DSO = """\
The flow model with its adapter beside it. With `pipeline`, a TrellisImageTo3DPipeline of the base:

```python
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

settings = LoraConfig(r={rank}, lora_alpha={alpha:g}, target_modules={targets})
flow = get_peft_model(pipeline.models["{role}"], settings)
flow.load_state_dict(load_file("THIS_FOLDER/dso.safetensors"))
pipeline.models["{role}"] = flow
```
"""
_TEXTS = {"merged": _MERGED, "peft": _PEFT, "dso": _DSO}


def readme(layout: str, adapter: Checkpoint, base: str, sha256: str) -> str:
    """The text for a folder of one of the layouts.

    Args:
      base: name of the generator that the adapter was trained on.
      sha256: of the base's flow weights.
    """
    lora = adapter.lora
    assert lora is not None
    code = _TEXTS[layout].format(
        role=FLOW, rank=lora.rank, alpha=lora.alpha, targets=list(lora.targets)
    )
    facts = {
        "base": f"{base}, flow weights with sha256 {sha256}",
        "adapter": f"rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}",
        **dict(sorted(adapter.metadata.items())),
        "written by": f"dso-jax {__version__}",
    }
    lines = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    return f"# A fine-tuned TRELLIS, layout {layout}\n\n{code}\n{lines}\n"
