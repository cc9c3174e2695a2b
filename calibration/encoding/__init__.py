"""Voxel-wise encoding models, and decoding by their inversion."""
