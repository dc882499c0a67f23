"""Networks by their hyper-parameters, as ONNX models with seeded weights."""

from .networks import gpt_blocks, mobilenet_v2, resnet18, unet
from .small import conv_bn_net, digits_cnn, mlp

__all__ = ["conv_bn_net", "digits_cnn", "gpt_blocks", "mlp", "mobilenet_v2", "resnet18", "unet"]
