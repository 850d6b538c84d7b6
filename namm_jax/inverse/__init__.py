"""Inverse problems: measurement operators, and samplers of the posterior, one file a method."""
