"""ONNX files and TensorRT plans of a pack, kept only where they compute what torch computes."""
