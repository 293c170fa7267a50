"""What `dso check --help` teaches."""

DESCRIPTION = """\
One object's card: does it stand, by how much, which way would it go, and can that be trusted?

MESH is a GLB, glTF, OBJ, STL, PLY, DAE, OFF or 3MF file. It is dropped upright in C MuJoCo, once
for each thing that it may be inside, looked over for faults, and drawn: how it starts and rests,
and where its centre of mass is over what it stands on.
"""
EPILOG = """\
what it may be inside
  exact    solid, as its triangles say; needs a closed surface
  voxel    solid, whatever the outer surface encloses: a print with full infill
  convex   solid convex hull
  shell    its surface alone, everywhere equally thick: a print without infill, a casting
  The verdict is `stands` or `falls` if all that can be had agree, and else `depends`. A surface
  that is not closed has no `exact`; the reason stands in its row, which does not count.

margin
  The smallest angle by which it would have to be tipped to fall, from the centre of mass over the
  support polygon; and how far the centre of mass is from that polygon's edge, in real size. STL and
  3MF are in millimetres, GLB and glTF in metres; for others say --unit. The angle needs no unit.

mesh faults
  holes, crowded edges (more than two triangles), triangles wound against each other or inside out,
  cavities and inner shells (closed parts inside another), crumbs (parts shorter than 1 % of the
  object). Crossing triangles are not looked for, and nothing is repaired.

exit codes
  0  stands, whatever it is inside      1  falls      3  depends
  2  the file or an argument cannot be used

examples
  dso check vase.stl
  dso check chair.glb --out chair.png --protocol fast
  dso check lamp.obj --unit cm --up z
  dso check print.3mf --json --no-picture | jq .margin_mm
  dso label --explain chair.glb    which engine, time step or contact rule would flip its label
"""
