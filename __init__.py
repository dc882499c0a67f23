"""hpdlf: predict, plan, approve and run the training of any ONNX model on any cluster."""

__version__ = "0.1.0"
