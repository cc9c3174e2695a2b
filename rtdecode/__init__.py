"""Real-time fMRI decoding: volumes in; pictures, captions and honest scores out."""

__version__ = "0.1.0"
