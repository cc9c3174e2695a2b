"""Samplers as loops over a callable, with the noise passed in: numpy arrays and torch tensors alike."""
