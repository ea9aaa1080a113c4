"""Vision Transformer: an image as a sequence of patches. Dosovitskiy et al. 2021; D2L 11.8."""

from __future__ import annotations

from .. import Tensor, cat, nn, zeros
from .layers import Checkpointed, encoder_layer


class ViT(Checkpointed):
    """Patches, a class token, pre-norm layers, and a linear layer on the class token.

    Args:
        img_size: height and width of the images.
        patch_size: of a patch; divides img_size.
        in_channels: of the images.
        num_hiddens: E, features of a patch.
        mlp_num_hiddens: features inside each layer's network.
        num_heads: heads of each attention.
        num_layers: layers.
        emb_dropout: on the patches' embeddings.
        blk_dropout: on attention weights, after each activation and before each residual sum.
        num_classes: logits.

    The defaults are the book's.

    Shape: images [B, in_channels, img_size, img_size] -> logits [B, num_classes].

    Raises:
        ValueError: a patch_size that does not divide img_size.
    """

    def __init__(
        self,
        img_size: int = 96,
        patch_size: int = 16,
        in_channels: int = 1,
        num_hiddens: int = 512,
        mlp_num_hiddens: int = 2048,
        num_heads: int = 8,
        num_layers: int = 2,
        emb_dropout: float = 0.1,
        blk_dropout: float = 0.1,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if patch_size < 1 or img_size % patch_size:
            raise ValueError(
                f"ViT: patch_size must divide img_size, got {patch_size} and {img_size}"
            )
        self.img_size = img_size
        self.patch_embedding = nn.Conv2d(in_channels, num_hiddens, patch_size, patch_size)
        self.cls_token = nn.Parameter(zeros(1, 1, num_hiddens))
        steps = (img_size // patch_size) ** 2 + 1
        self.pos_embedding = nn.Parameter(zeros(1, steps, num_hiddens))
        nn.init.normal_(self.pos_embedding, 0.0, 0.02)
        self.dropout = nn.Dropout(emb_dropout)
        layers = []
        for _ in range(num_layers):
            layer = encoder_layer(
                num_hiddens, num_heads, mlp_num_hiddens, blk_dropout, "gelu", norm_first=True
            )
            layer.dropout.p = blk_dropout
            layers.append(layer)
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(num_hiddens)
        self.head = nn.Linear(num_hiddens, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes]; ValueError for images of another size."""
        if x.ndim != 4 or tuple(x.shape[2:]) != (self.img_size, self.img_size):
            raise ValueError(
                f"ViT: expected images [B, C, {self.img_size}, {self.img_size}], got "
                f"{list(x.shape)}"
            )
        patches = self.patch_embedding(x).flatten(2).transpose(1, 2)
        token = self.cls_token.expand(len(x), -1, -1)
        x = cat([token, patches.to(token.dtype)], 1)  # bfloat16 under autocast
        x = self.dropout(x + self.pos_embedding)
        for layer in self.layers:
            x = self.run(layer, x)
        result: Tensor = self.head(self.norm(x[:, 0]))
        return result
