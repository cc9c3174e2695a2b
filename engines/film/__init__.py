"""A film to what a brain that follows it is expected to do: features, prediction, a new participant."""
