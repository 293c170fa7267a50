"""What `dso label --help` teaches."""

DESCRIPTION = """\
Drop every mesh onto a plane in MuJoCo MJX and write one row a file: does it stand?

PATHS are mesh files (GLB, glTF, OBJ, STL, PLY, DAE, OFF, 3MF), folders (searched recursively) or
quoted globs, any number of them. Meshes need not be watertight. Each is turned z-up, scaled and
dropped upright as the protocol says; it is stable if it ends within 20 degrees of how it started.
"""
EPILOG = """\
protocols
  dso-eval   scaled to unit size, 1 ms steps, up to 10 s, stops early once at rest (the default)
  dso-label  raw file units, 1 ms steps, always 10 s: how DSO labelled its training set
  fast       dso-eval with 2 ms steps: half the time, 0-0.3 % of labels differ
  solid      dso-eval with the true inertia of closed meshes and the contact rule of occupancy, as
             dso sample and dso generate label: for the meshes that they export. The others count
             concave parts of a mesh twice, as DSO does (MuJoCo's `legacy` inertia)
  FILE.yaml  your own: fields that differ from dso-eval, or from `preset: NAME`

engines
  mjx        MuJoCo MJX in JAX, on the accelerator if there is one (the default). --mjx-step stock
             is mjx.step itself; slim, the default, solves the same equations (soft contacts,
             Newton, Euler) without what one free body on a plane has none of: joints, tendons,
             actuators, sensors. They agree to rounding, and slim is several times as fast.
  mujoco     C MuJoCo in double precision, on all cores; what the others are measured against, and
             the quickest for a few files, since it compiles nothing
  mujoco_warp  NVIDIA's MuJoCo for CUDA, if the packages mujoco-warp and warp-lang are installed

columns
  path sha256 status reason stable tilt_deg rotation_deg margin_deg steps points mass inertia
  inertia_fallback adjudicated tilt_first_deg protocol engine engine_version device
  status is rest, moving (still moving at the end) or invalid; an invalid row says why in `reason`
  (see below), and has no label. tilt_deg ignores yaw, rotation_deg counts it. margin_deg is the
  smallest angle by which the object, as it starts, would have to be tipped to fall; it needs no
  simulation. adjudicated: MJX came within 5 degrees of the threshold, or the object still moved, so
  the row is C MuJoCo's in double precision; tilt_first_deg is what MJX had. --no-adjudicate keeps
  MJX's own.

reasons of invalid rows
  unreadable, not_a_file, unsupported, not_a_mesh, empty, nan_vertices, flat: what the file is
  scale: in raw units, larger or smaller than a simulation of metres can take
  too_large, too_many_faces, timeout, crashed: costs more than one file may; the job goes on
  mujoco_rejects, not_finite: the engine refused it, or could not finish

perturbed starts: --perturb 0.04 --starts 100
  Each object is also dropped from 100 starts, turned by a random angle of up to 0.04 radians about
  a random horizontal axis. Further columns: survival (part of the starts that end within the
  threshold of upright; yaw does not count), starts (valid ones), tip_direction_deg (azimuth in
  which it falls, from x towards y), tip_agreement (1 if it always falls that way), and
  margin_direction_deg (where the static margin is smallest). The starts depend on --seed and the
  file's contents alone.

large jobs
  Rows are kept in OUT.parts/ until all are there. A job that was killed goes on where it was when
  the same command runs again, and gives the same table. If a file, the protocol or the engine has
  changed since, it is refused; --overwrite starts anew.
  --shard I/N labels one of N parts; run all of them, anywhere that sees the same files, in any
  order, with the same --out. The last one to finish writes the table. If one died, run it again, or
  the command without --shard, which does what is missing. --shard auto takes I and N from SLURM
  (array or tasks), Open MPI or JAX_PROCESS_ID / JAX_NUM_PROCESSES.
  --prepare device leaves the hulls out: the processes only read, and the accelerator makes masses
  and 256 support points of each mesh, which touch the ground by a simpler rule (`skin`). It is for
  hosts with few cores beside a fast device; labels agree outside 15-25 degrees.
  --cache DIR keeps prepared bodies, so that another engine, threshold or timestep over the same
  meshes costs no preparation. --block N is how many files' rows are written at once, which is what
  a kill may cost; labels do not depend on it (with --mjx-step stock, their last bits do).

one object: --explain chair.glb, or --explain labels.parquet:17
  Replays it: how it starts and rests, what it stands on, its margin, and which choices (inertia,
  time step, contact rule, engine, scale, jitter) would flip the label. --out FILE.png draws it.

labels for a dataset: --into DATA
  For meshes named CATEGORY/OBJECT/IMG_EEE.glb, as scripts/trellis_stage2.py writes them (objects
  without a category are in objects/). Once all are labelled, the samples of the dataset folder DATA
  that have a mesh get its label in place of the one from their occupancy; `source` says mesh then.
  Others keep theirs. DATA keeps the table of each protocol and engine, labels-dso-label-mjx.parquet
  (unless --out names another place), and the labels that the samples had first,
  labels-replaced.parquet. The same command again changes nothing; another protocol or engine
  replaces the labels once more. DSO labelled its training set with --protocol dso-label.

DSO's own files: --dso-outputs DIR
  For meshes named CATEGORY/OBJECT/IMG_EEE.glb, writes model_info.npz, IMG_angles.npy and
  available_images.npy into DIR/CATEGORY/OBJECT. A failed mesh is NaN in the angles and absent from
  model_info; angles are rounded so that none changes sides at the threshold.

exit codes
  0  labelled, perhaps with invalid rows
  2  nothing could be labelled, an argument is unusable, or --strict met an invalid file

examples
  dso label chair.glb --out labels.parquet
  dso label meshes/ 'more/**/*.obj' --out labels.parquet --protocol fast
  dso label prints/ --out labels.parquet --up z --engine mujoco --strict
  dso label 'meshes/**/*.glb' --out labels.parquet --cache bodies/ --perturb 0.04
  srun -n 8 dso label 'meshes/**/*.glb' --out labels.parquet --shard auto
  dso label data/meshes --into data/pairs --protocol dso-label
  dso label --explain labels.parquet:17 --out object17.png
"""
