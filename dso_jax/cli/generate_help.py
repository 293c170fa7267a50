"""What `dso generate --help` teaches."""

DESCRIPTION = """\
Sample a generator for many pictures, drop what it makes in the simulator, and keep latents,
conditions and labels as a dataset that `dso train` learns from.
"""
EPILOG = """\
pictures
  Best with a transparent background; any other loses its background to a remover (--remover). Each
  file shows an object of its own, named by its path below the folder that all have in common, as
  CATEGORY/OBJECT. With --views the files of one folder are views of one object, and pairs for
  training may mix them. A picture that cannot be used is named and left out; --strict stops there.
  --prompts toybox:COUNT needs no picture and no download.

what is written
  DATA/samples.parquet                one line a sample: object, view, sample, seed, label
  DATA/latents-*, conditions-*        one numbered shard for each block of about 256 samples
  DATA/meta.json                      what made them; a folder has one generator, protocol, seed ...
  DATA/contact-sheet.png              the first objects: picture, start and rest
  Samples are those of the generator's first stage (the structure), and labels those of the solid
  that it describes. `dso dataset export-coords` takes the samples to a second stage elsewhere,
  `dso label MESHES --into DATA` brings the labels of its meshes back.

long jobs
  A job that was killed goes on when the same command runs again, and ends with the same folder; a
  kill costs the sampling of one block a device. While blocks are missing, their lines are in
  samples-*.parquet, which every `dso dataset` command and dso train read as well.
  All GPUs of the machine are used (--devices 0,1 takes some). For several machines or jobs, run the
  same command with --shard 0/4 ... 3/4, or --shard auto under SLURM, Open MPI or JAX_PROCESS_ID:
  each makes every N-th block, and the last one puts the table together. Jobs without --shard may
  share a folder too; they take turns on what is missing.
  A sample depends on its object, view and number, --seed and --batch, and on nothing else: not on
  the number of devices or jobs, nor on what else is asked for.
  For more samples of the same pictures write another folder with --first-sample 4, for other
  pictures just another folder; `dso dataset merge` puts them together.

exit codes
  0  this share is there, perhaps without pictures that could not be used
  2  an argument cannot be used, no picture could be, or --strict met one that cannot

examples
  dso generate --prompts toybox:320 --samples 4 --out runs/data
  dso generate --images 'prompts/*/*.png' --views --samples 4 --out data
  dso generate --images pictures/ --adapter runs/dro --samples 8 --out round2
  srun -n 16 dso generate --images 'prompts/*/*.png' --out data --shard auto
"""
