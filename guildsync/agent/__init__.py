"""A Tree, a filesystem and an executor served over a pipe."""
