"""Flax networks: the input-convex network, the ResNet generator and the U-Net.

They know flax and nothing else.
"""
