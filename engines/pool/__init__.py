"""Pools of pictures in an index on the disk."""
