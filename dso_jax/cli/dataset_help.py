"""The texts of `dso dataset --help` and of its commands."""

OVERVIEW = """\
usage: dso dataset COMMAND ...

Look into a dataset folder, or exchange one with DSO's own scripts. A dataset folder holds labelled
samples: what `dso demo` writes and `dso train` reads.

  stats       how many objects, labels and usable pairs there are, and how far objects fell
                $ dso dataset stats data/pairs
  validate    read all of it and report everything that is wrong
                $ dso dataset validate data/pairs
  import-dso  read a data folder of DSO's preprocessing scripts (.pt, .npy and .npz files)
                $ dso dataset import-dso data/dso --out data/pairs
  export-dso  write a data folder that DSO's training script reads
                $ dso dataset export-dso data/pairs --out data/dso
  export-coords  occupied voxels, for the second stage of TRELLIS in torch
                $ dso dataset export-coords data/pairs --out data/coords
  merge       several dataset folders as one
                $ dso dataset merge jobs/0 jobs/1 --out data/pairs

`dso dataset COMMAND --help` tells the rest."""

STATS = """\
Print what a dataset folder holds: objects with both labels, the label mix, usable pairs, size on
disk, and a histogram of the tilt (of the total rotation where nobody recorded the tilt).
It reads the table and the file sizes alone, so it is quick for a folder of any size.

A usable pair is a stable and an unstable sample of one object that has a condition.
"""

VALIDATE = """\
Read all of a dataset folder and report everything that is wrong with it at once: missing, cut or
misshapen shards, NaN, samples listed twice, two samples with the same latent, labels at odds with
themselves. Files that no sample refers to are noted; they do no harm.

exit codes
  0  nothing is wrong
  2  something is, or there is no such folder
"""

IMPORT = """\
Read a data folder of DSO's preprocessing scripts into a dataset folder. SOURCE is the folder that
holds the CATEGORY folders:

  SOURCE/CATEGORY/OBJECT/IMG_cond.pt                the condition of an image
                         IMG_sparse_sample_EEE.pt   the latent of its sample EEE
                         IMG_angles.npy             its labels: rotation in degrees
                         model_info.npz             the object's labels, less precise
                         IMG_EEE.glb                used for its name alone

The object is called CATEGORY/OBJECT, the view IMG, the sample EEE. Reading .pt files needs torch
(pip install 'dso-jax[torch]'); nothing in them is executed.
"""

IMPORT_MORE = """\
labels
  stable means a rotation below 20 degrees, yaw included, as DSO counts it. IMG_angles.npy (float64)
  goes before model_info.npz, whose float16 makes 19.993 and more into 20 and whose int8 ids turn
  negative at 128 (undone). A sample without an angle, or with NaN, is `invalid`: never drawn.
  An image without IMG_cond.pt keeps its samples; they are drawn under the object's other images.

A killed import goes on where it stopped when it is started again. It takes about 2 GiB of memory.

exit codes
  0  imported; damaged files were named and left out
  2  nothing could be imported, an argument is unusable, or --strict met a damaged file

examples
  dso dataset import-dso data/dso --out data/pairs
  dso train --config configs/toybox-dpo.yaml --base TRELLIS-image-large --data data/pairs
"""

EXPORT = """\
Write a dataset folder as the data folder that DSO's training script reads: bf16 .pt files and the
label files, CATEGORY/OBJECT/IMG_*. Needs torch (pip install 'dso-jax[torch]').
"""

EXPORT_MORE = """\
Objects without a category in their name go to `objects/`. Label files are as DSO writes them, less
their faults: model_info.npz (int8 ids, int16 above 127; float16 angles, on the side of 20 degrees
where they were) for objects with both labels; IMG_angles.npy for images that lack no sample;
available_images.npy for those of them with both labels. DSO's loader draws only from objects that
have both files. Other types than bf16 are rounded.
DIR/dso-jax keeps what the layout has no place for (tilt, margin, seeds, protocol): with it,
import-dso gives back the very same dataset.

A killed export goes on where it stopped when it is started again.

exit codes
  0  written
  2  an argument, or a name, number or label that the layout cannot hold

examples
  dso dataset export-dso data/pairs --out data/dso
"""

COORDS = """\
Decode every latent of a dataset folder and write which voxels are occupied, so that the second
stage of TRELLIS, in torch, can make meshes of them: DSO's labels come from such meshes.
"""

COORDS_MORE = """\
the whole way
  $ dso dataset export-coords data/pairs --out data/coords
  $ python scripts/trellis_stage2.py data/coords --out data/meshes    where TRELLIS is installed
  $ dso label data/meshes --into data/pairs --protocol dso-label

  DIR holds one .npz an object, CATEGORY/OBJECT.npz (objects/OBJECT.npz if it has no category), for
  numpy alone: voxels, the seeds of the samples, and the condition of each image, 2.8 MB a view with
  TRELLIS-image-large, or its picture, 0.8 MB, where the dataset keeps these. The script takes
  nothing else, so DIR may be copied to another machine.

A killed export goes on where it stopped when it is started again, and one of a dataset that has
grown since adds what is new.

exit codes
  0  written
  2  an argument, the generator is another than the samples', or a name or number that DSO's layout
     cannot hold
"""

MERGE = """\
Copy the samples of several dataset folders into a new one. They must be of the same shapes and made
by the same base, and no sample may be in two of them. Labels are copied as they are.
A killed merge goes on where it stopped when it is started again.

examples
  dso dataset merge jobs/0 jobs/1 jobs/2 --out data/pairs
"""
