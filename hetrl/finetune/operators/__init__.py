"""What each ONNX operator computes, in torch: one small function per operator, one file per family."""
