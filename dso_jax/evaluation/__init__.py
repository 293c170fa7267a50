"""Does it stand, by how much, at what cost in shape: measures of generated meshes."""
