"""Ready-made networks, one file per family.

They are made of plain layers only: on `torch.nn` the same files define the same networks.
"""

from .alexnet import AlexNet
from .attention import AdditiveAttention, DotProductAttention, masked_softmax, nadaraya_watson
from .densenet import DenseBlock, DenseNet
from .googlenet import GoogLeNet, Inception
from .gpt import GPT, GPTConfig
from .initialize import apply_init, init_cnn
from .lenet import LeNet
from .mlp import MLP
from .nin import NiN
from .positions import LearnedPositionalEncoding, PositionalEncoding, RelativePositionBias
from .resnet import Residual, ResNet, ResNet18, ResNet34, ResNet50, ResNeXt50, ResNeXtBlock
from .rnn_lm import RNNLM
from .seq2seq import AttentionDecoder, Seq2Seq, Seq2SeqDecoder, Seq2SeqEncoder
from .softmax_regression import SoftmaxRegression
from .vgg import VGG, VGG11

__all__ = [
    "GPT",
    "MLP",
    "RNNLM",
    "VGG",
    "VGG11",
    "AdditiveAttention",
    "AlexNet",
    "AttentionDecoder",
    "DenseBlock",
    "DenseNet",
    "DotProductAttention",
    "GPTConfig",
    "GoogLeNet",
    "Inception",
    "LeNet",
    "LearnedPositionalEncoding",
    "NiN",
    "PositionalEncoding",
    "RelativePositionBias",
    "ResNeXt50",
    "ResNeXtBlock",
    "ResNet",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "Residual",
    "Seq2Seq",
    "Seq2SeqDecoder",
    "Seq2SeqEncoder",
    "SoftmaxRegression",
    "apply_init",
    "init_cnn",
    "masked_softmax",
    "nadaraya_watson",
]
