"""What the whole library uses and no user imports: argument checks, files on disk, the vector-Jacobian product."""
