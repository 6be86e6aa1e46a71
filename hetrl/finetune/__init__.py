"""Training a compressed model further in torch: from ONNX, and back into the same graph. Importing this is light."""
