"""Per-voxel features computed in 3D, the samples drawn from them, and the cache they live in."""
