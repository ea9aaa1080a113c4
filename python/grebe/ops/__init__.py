"""Every op of the library: one file per family, with kernels of the same name in csrc.

A module's ``__all__`` lists what becomes ``grebe.<name>``; functions marked `@method` are also
methods of Tensor; nn.functional imports the rest by name.
"""

from . import (
    compare,
    conv,
    creation,
    dropout,
    elementwise,
    gamma,
    indexing,
    inplace,
    linalg,
    matmul,
    pool,
    random,
    rare,
    reduce,
    rnn,
    shape,
    softmax,
    sort,
)

MODULES = (
    compare, conv, creation, dropout, elementwise, gamma, indexing, inplace, linalg, matmul, pool,
    random, rare, reduce, rnn, shape, softmax, sort,
)  # fmt: skip
