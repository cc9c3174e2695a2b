"""Fine-tuning of a pack's networks on one participant's calibration."""
