"""From a beta to an embedding, a score, a caption and a picture."""

from rtdecode.decode.decoder import Decoder
from rtdecode.decode.loading import load_candidates, load_decoder, load_embedder

__all__ = ["Decoder", "load_candidates", "load_decoder", "load_embedder"]
