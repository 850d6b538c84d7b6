"""Constraints: values with `terms`, `distance` and `residual`, and the projection onto them."""
