"""Networks by their hyper-parameters, as ONNX models with seeded weights."""

from .small import conv_bn_net, digits_cnn, mlp

__all__ = ["conv_bn_net", "digits_cnn", "mlp"]
