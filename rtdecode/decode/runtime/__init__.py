"""What runs networks, whatever family they belong to: ONNX Runtime, torch with CUDA graphs, TensorRT."""
