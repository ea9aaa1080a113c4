"""Texts: prose that every Python has, any text file, the book's novel and its sentence pairs."""

from __future__ import annotations

import os
import re

from ..nn.modules.checks import whole

Path = str | os.PathLike[str]
_MAX_BYTES = 1 << 30


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark, line ends as newlines.

    Raises:
        OSError: it cannot be read.
        ValueError: it is empty, too large or not UTF-8. The message names the file.
    """
    name = os.fspath(path)
    with open(path, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{name!r}: expected at most {_MAX_BYTES} bytes of text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name!r} is no UTF-8 text: {error.reason} at byte {error.start}"
        ) from None
    if not text.strip():
        raise ValueError(f"{name!r} holds no text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_prose() -> str:
    """About 300,000 characters of English prose: Python's own language reference.

    The paragraphs of `pydoc_data.topics`, without headings, code and grammar. It is in every
    Python; the text differs a little between versions.
    """
    from pydoc_data.topics import topics

    paragraphs = "\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    return "\n\n".join(p for p in paragraphs if p.strip() and not re.search(r"^   |\*\*\*|===", p))


def read_time_machine(root: Path = "data") -> str:
    """H. G. Wells, The Time Machine, from `root`/timemachine.txt as the book has it. D2L 9.2.1.

    Raises:
        FileNotFoundError: it is not there; the message says where to get it.
    """
    path = os.path.join(os.fspath(root), "timemachine.txt")
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"expected {path!r}; the book's copy is http://d2l-data.s3-accelerate.amazonaws.com/"
            "timemachine.txt"
        )
    return read_text(path)


def read_pairs(path: Path, max_pairs: int | None = None) -> list[tuple[str, str]]:
    """Sentence pairs from a tab-separated file, in its order. D2L section 10.5.1.

    The first two fields of each line are a sentence and its translation; further ones (Tatoeba's
    attributions) are ignored, and so are empty lines. English-French pairs in this form are at
    https://www.manythings.org/anki.

    Args:
        path: the file.
        max_pairs: read no more than this.

    Raises:
        OSError: it cannot be read.
        ValueError: not UTF-8, no pairs, or a line without two sentences. The message names file and
            line.
    """
    name = os.fspath(path)
    limit = None if max_pairs is None else whole("read_pairs", "max_pairs", max_pairs)
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        if len(pairs) == limit:
            break
        fields = [field.strip() for field in line.split("\t")[:2]]
        if len(fields) < 2 or not all(fields):
            raise ValueError(
                f"{name!r}, line {number}: expected two sentences with a tab between, got "
                f"{line[:60]!r}"
            )
        pairs.append((fields[0], fields[1]))
    return pairs
