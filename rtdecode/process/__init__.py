"""Runs recorded series through the online estimator; writes BIDS derivatives."""

from rtdecode.process.offline import Processed, ProcessedRun, process

__all__ = ["Processed", "ProcessedRun", "process"]
