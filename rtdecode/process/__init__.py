"""Runs recorded series through the online estimator; writes BIDS derivatives."""

from rtdecode.process.offline import Processed, ProcessedRun, process_runs

__all__ = ["Processed", "ProcessedRun", "process_runs"]
