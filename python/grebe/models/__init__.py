"""Ready-made networks, one file per family.

They are made of plain layers only: on `torch.nn` the same files define the same networks.
"""

from .alexnet import AlexNet
from .attention import (
    AdditiveAttention,
    DotProductAttention,
    attention_maps,
    masked_softmax,
    nadaraya_watson,
)
from .bert import (
    BERT,
    BERTConfig,
    BERTForPreTraining,
    BERTForQuestionAnswering,
    BERTForSequenceClassification,
    BERTForTokenClassification,
)
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
from .transformer import TransformerSeq2Seq
from .vgg import VGG, VGG11
from .vit import ViT

__all__ = [
    "BERT",
    "GPT",
    "MLP",
    "RNNLM",
    "VGG",
    "VGG11",
    "AdditiveAttention",
    "AlexNet",
    "AttentionDecoder",
    "BERTConfig",
    "BERTForPreTraining",
    "BERTForQuestionAnswering",
    "BERTForSequenceClassification",
    "BERTForTokenClassification",
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
    "TransformerSeq2Seq",
    "ViT",
    "apply_init",
    "attention_maps",
    "init_cnn",
    "masked_softmax",
    "nadaraya_watson",
]
