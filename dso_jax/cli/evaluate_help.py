"""What `dso evaluate --help` teaches."""

DESCRIPTION = """\
Do these objects stand, by how much, at what cost in shape, and can the numbers be trusted?

PATHS are meshes from any generator: files (GLB, glTF, OBJ, STL, PLY, DAE, OFF, 3MF), folders
(searched recursively) or quoted globs. Names such as chair-003_001.glb, as DSO's scripts write
them, are object chair, picture 003, sample 1; any other file is an object of its own. A broken file
is a row with a reason, and the rest goes on. PATHS may also be one run folder of `dso train`: its
held-out objects are then sampled, before and after training, and judged.
"""
EPILOG = """\
what comes out in FOLDER
  report.html   tables, curves, and every object's start and rest pose; works offline
  results.json  the record (command, device, versions, protocol), the tables and the curves
  results.csv   one line a mesh

tables
  output        part of the meshes that could be simulated
  stable        part of these that stand, under the protocol (see dso label --help)
  stable_of_all the same, with what could not be simulated counted as fallen
  moving        still moving at the end
  tilt_deg      mean angle at which they end; _median; rotation_deg is DSO's, which counts yaw
  margin_deg    smallest angle by which the object, as it starts, would have to be tipped to fall;
  margin_mm     the same as a distance on the ground, for an object with a longest side of 100 mm
  cd f_score    with --truth: Chamfer distance (half the sum of both mean distances, unsquared) and
                F-score at .05 between 10,000 surface samples of each, longest sides 1, after ICP:
                the paper's. A mesh has some distance from itself, about .01: the column cd_floor.
                --geometry fine adds 100,000 samples and a threshold of .01, whose floor is a third
  plate footprint volume height components watertight
                what a cheat would move: see guards
  Every number stands with a 95 % interval: objects, not samples, are drawn anew 10,000 times.

before and after: --before FOLDER
  Files of the same names. Adds tables of before and of the change, and the guards: a base plate
  that was not there, a wider footprint, volume, height over width, more parts, no output. A guard
  that fires on more than 5 % of the pairs makes the verdict `suspect`.

perturbed starts: --perturb
  Each object is also dropped from 100 starts at every angle, turned by up to that angle about a
  random horizontal axis: which part ends upright. --perturb 0.05,0.1 takes other angles.

engines: --engines mjx,mujoco,legacy,sapien
  The first makes the tables. The others drop the same meshes: how often they agree, and which ones
  they see differently. mujoco is C MuJoCo, legacy the same as DSO's script sets it up (mirrored
  axes, ten seconds to the end), sapien is PhysX, the family of Isaac Gym: pip install
  'dso-jax[sapien]'.

baselines: --baselines cut,best-pose,best-of-n
  What the paper compares with: cut flat at .05, .1, .15 and .2 of the size and capped; laid into
  the pose that is hardest to tip; the best of 1, 2, 4, ... samples of a picture by the simulator.
  Without --truth, distances are to the mesh as it was: what the change costs. Meshes of other
  methods, such as Atlas3D or PhysComp, are just PATHS.

run folders
  dso evaluate runs/dro --out runs/dro-evaluation
  --checkpoints all samples the held-out objects with every checkpoint that the run kept, draws
  stability and distance against steps, and names the best; best and last take one, 300 that step.
  The best is chosen on the objects that are reported, which flatters it; last does not choose.

interrupted
  The same command goes on where it was, with the same --out.

exit codes
  0  done, whatever the verdict
  2  an argument or the input cannot be used, or no mesh could be simulated

examples
  dso evaluate samples/ --out evaluation
  dso evaluate tuned/ --before base/ --truth objaverse/ --perturb --out evaluation
  dso evaluate meshes/ --engines mujoco,sapien --baselines cut,best-pose --out evaluation
  dso evaluate runs/dro --checkpoints all --baselines best-of-n --out evaluation
"""
