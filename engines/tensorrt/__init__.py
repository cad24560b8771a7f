"""The TensorRT and TensorRT-RTX engines."""
