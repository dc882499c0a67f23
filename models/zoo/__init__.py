"""Networks by their hyper-parameters, as ONNX models whose weights have no values, or seeded ones."""

from .bert import bert
from .blocks import gpt_blocks
from .catalogue import NETWORKS, build, hyper_parameters, import_network
from .gpt import gpt, mpt
from .llama import llama
from .mobilenet import mobilenet_v2
from .resnet import resnet, resnet18
from .small import conv_bn_net, digits_cnn, mlp
from .unet import unet, unet3d

__all__ = [
    "NETWORKS",
    "bert",
    "build",
    "conv_bn_net",
    "digits_cnn",
    "gpt",
    "gpt_blocks",
    "hyper_parameters",
    "import_network",
    "llama",
    "mlp",
    "mobilenet_v2",
    "mpt",
    "resnet",
    "resnet18",
    "unet",
    "unet3d",
]
