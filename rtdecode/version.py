"""The version of the package, alone: what needs it imports nothing else."""

__version__ = "0.1.0"
