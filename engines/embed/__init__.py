"""Embeddings of pictures, and the map that a participant is calibrated through."""
