"""One folder a family of decoders, with all that it needs at run time."""
