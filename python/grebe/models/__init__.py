"""Ready-made networks, one file per family.

They are made of plain layers only: on `torch.nn` the same files define the same networks.
"""

from .alexnet import AlexNet
from .densenet import DenseBlock, DenseNet
from .googlenet import GoogLeNet, Inception
from .initialize import apply_init, init_cnn
from .lenet import LeNet
from .mlp import MLP
from .nin import NiN
from .resnet import Residual, ResNet, ResNet18, ResNet34, ResNet50, ResNeXt50, ResNeXtBlock
from .softmax_regression import SoftmaxRegression
from .vgg import VGG, VGG11

__all__ = [
    "MLP",
    "VGG",
    "VGG11",
    "AlexNet",
    "DenseBlock",
    "DenseNet",
    "GoogLeNet",
    "Inception",
    "LeNet",
    "NiN",
    "ResNeXt50",
    "ResNeXtBlock",
    "ResNet",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "Residual",
    "SoftmaxRegression",
    "apply_init",
    "init_cnn",
]
