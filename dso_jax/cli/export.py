"""`dso export`: write a trained run for torch, and prove that it is the same model."""

from __future__ import annotations

import argparse
from pathlib import Path

from dso_jax.cli.parser import Parser
from dso_jax.errors import UsageError

_HELP = """\
Write the adapter of a training run in a form that torch loads, and verify it: what was written is
read again, and every tensor and one forward of the model are compared with base + adapter (of a
large model on a corner of its grid, which goes through the same weights).

RUN is a run folder of `dso train` (config.yaml, adapter/, adapter-best/) or an adapter folder.
"""
_EPILOG = """\
layouts (--layout); each folder has a README.md with the lines of Python that load it
  merged  a TRELLIS pipeline folder: the adapter folded into the flow model's weights, the other
          models of the base, and pipeline.json. TrellisImageTo3DPipeline.from_pretrained(DIR) is
          all it needs, and `dso` takes it as --base. The adapted weights are rounded to --half
  peft    adapter_model.safetensors and adapter_config.json, for PeftModel.from_pretrained; small
          and exact
  dso     dso.safetensors, base and adapter in one file, as DSO's example.py loads it; exact

exit codes
  0  written and verified
  2  an argument, the run or the base cannot be used, or the disk is full; nothing was written

examples
  dso export runs/dro --layout merged --out tuned
  dso export runs/dro --layout dso --base TRELLIS-image-large --out tuned-dso
  dso export runs/dro/adapter --layout peft --base toybox --out tuned-peft
"""


def main(argv: list[str]) -> int:
    """Runs the command; see `--help`.

    Raises:
      UsageError: an argument, the run or the base cannot be used. Nothing has been written then.
    """
    options = _parser().parse_args(argv)
    # JAX takes seconds to import; `--help` and typing mistakes need not wait.
    from dso_jax.cli import adapters, exporting
    from weight_port import folders, layouts

    run = Path(options.run)
    if not run.is_dir():
        raise UsageError(f"export: {run}: no such folder")
    with exporting.usage_errors(options.out):
        out = folders.check_new(options.out)
        folder = adapters.find(run, options.adapter)
        if folder == run and options.adapter != "auto":
            raise UsageError(f"export: --adapter: {run} is one adapter, not a run with several")
        name = options.base or adapters.recorded_base(run)
        if name is None:
            raise UsageError(f"export: {run} does not say what its base is; give --base")
        base = exporting.load_base(name)
        adapter = layouts.read(folder, flow=base.config, base_sha256=base.sha256)
        adapters.check_trained(run, exporting.with_adapter(base, adapter))
        with folders.new_folder(out) as building:
            if options.layout == "peft":
                found = exporting.write_peft(building, adapter, base)
            elif options.layout == "dso":
                found = exporting.write_dso(building, adapter, base)
            else:
                found = exporting.write_merged(
                    building, adapter, base, options.half, options.others
                )
    print(f"verified: {found}")
    print(f"{out}: {options.layout}; how to load it: {out / 'README.md'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser("export", _HELP, _EPILOG)
    parser.add_argument("run", metavar="RUN", help="run folder or adapter folder")
    parser.add_argument(
        "--layout", required=True, choices=("dso", "peft", "merged"), help="see below"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder to write")
    parser.add_argument(
        "--base",
        metavar="PATH",
        help="generator that the run started from: toybox, a TRELLIS pipeline folder or its name "
        "on the hub (default: as in the run's config.yaml); one that the adapter was not trained "
        "on is refused",
    )
    parser.add_argument(
        "--adapter",
        choices=("auto", "best", "last"),
        default="auto",
        help="of a run folder: the one of the best held-out evaluation (adapter-best/), the last "
        "(adapter/), or the best if there is one (default: auto)",
    )
    parser.add_argument(
        "--half",
        choices=("float16", "bfloat16", "float32"),
        default="float16",
        metavar="TYPE",
        help="merged: float16, bfloat16 or float32 for the weights that TRELLIS publishes in 16 "
        "bits (default: float16), loaded unrounded if not float16; all others keep their type",
    )
    parser.add_argument(
        "--others",
        choices=("copy", "link"),
        default="copy",
        help="merged: copy the base's other models, or make symbolic links to them: quick, but "
        "the folder then works only while the base stays where it is (default: copy)",
    )
    return parser
