"""Small labelling jobs for the tests: a crowd of files, good and bad, under C MuJoCo."""

from __future__ import annotations

import pathlib
import shutil

import pyarrow as pa
import pyarrow.parquet as pq

from sim_mjx import engines, job, plan
from sim_mjx.task import Task
from tests.sim import shapes

TASK = Task(shapes.FAST, engines.resolve("mujoco"))
FLAT = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
NOT_FINITE = "v 0 0 0\nv 1 0 0\nv 0 nan 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\n"
# What a file of the crowd holds -> the reason of its row.
GARBAGE = {
    "text.obj": ("hello", "not_a_mesh"),
    "empty.stl": ("", "empty"),
    "flat.obj": (FLAT, "flat"),
    "nan.obj": (NOT_FINITE, "nan_vertices"),
    "cut.glb": ("glTF\2\0\0\0", "not_a_mesh"),
}


def crowd(folder: pathlib.Path, copies: int) -> list[pathlib.Path]:
    """Copies of four meshes, with one bad file of every kind among them."""
    folder.mkdir()
    names = ("towel3", "lantern", "table", "bread")
    for i in range(copies):
        name = names[i % len(names)]
        shutil.copy(shapes.mesh_path(name), folder / f"{i:03d}-{name}.obj")
    for i, (name, (text, _)) in enumerate(GARBAGE.items()):
        (folder / f"{3 * i:03d}-{name}").write_text(text, encoding="utf-8")
    return sorted(folder.iterdir())


def label(files, out: pathlib.Path, task: Task = TASK, *, block: int = 4, **options) -> bool:
    """Plans and runs a job in this process."""
    overwrite = options.pop("overwrite", False)
    work = plan.make_plan(files, task, out, block=block, overwrite=overwrite)
    return job.run(work, task, out, workers=0, **options)


def table(out: pathlib.Path) -> pa.Table:
    return pq.read_table(out)
