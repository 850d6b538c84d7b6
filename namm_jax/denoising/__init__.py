"""Diffusion models as denoisers: noising paths, samplers, and guidance."""
