"""How good reconstructions are: the measures of the published papers."""
