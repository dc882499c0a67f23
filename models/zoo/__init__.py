"""Networks by their hyper-parameters, as ONNX models whose weights have no values, or seeded ones."""

from .bert import bert
from .blocks import gpt_blocks
from .catalogue import NETWORKS, build, hyper_parameters, import_network
from .detection import retinanet, ssd_resnet34
from .efficientnet import efficientnet
from .gpt import gpt, mpt
from .inception import inception_v3
from .llama import llama
from .mask_rcnn import mask_rcnn
from .mobilenet import mobilenet_v2, mobilenet_v3
from .moe import deepseek_v2, mixtral
from .resnet import resnet, resnet18
from .small import conv_bn_net, digits_cnn, mlp
from .translation import t5, transformer
from .unet import unet, unet3d
from .vgg import alexnet, vgg
from .vit import vit

__all__ = [
    "NETWORKS",
    "alexnet",
    "bert",
    "build",
    "conv_bn_net",
    "deepseek_v2",
    "digits_cnn",
    "efficientnet",
    "gpt",
    "gpt_blocks",
    "hyper_parameters",
    "import_network",
    "inception_v3",
    "llama",
    "mask_rcnn",
    "mixtral",
    "mlp",
    "mobilenet_v2",
    "mobilenet_v3",
    "mpt",
    "resnet",
    "resnet18",
    "retinanet",
    "ssd_resnet34",
    "t5",
    "transformer",
    "unet",
    "unet3d",
    "vgg",
    "vit",
]
