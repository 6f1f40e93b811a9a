"""Internal tools of the whole library: argument checks, files on disk, the vector-Jacobian product."""
