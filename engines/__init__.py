"""Offline: train or convert weights, export ONNX, check parity, seal an EnginePack."""
