"""From a beta to an embedding, a score, a caption and a picture."""
