"""Using a trained text model from the command line: `python -m grebe generate`."""

from __future__ import annotations

import json
import os
from typing import Any

from ._cpu import wrap
from .models import RNNLM, Seq2Seq
from .runner import UsageError, one_line
from .serialization import load_file
from .text import BOS, EOS, Vocab, clean, clean_sentence, encode_sentences

_OPTIONS = {"char-lm": {"length", "temperature", "seed"}, "seq2seq": {"beam"}}


def generate(folder: str, prompt: str, **options: Any) -> str:
    """The continued text or the translation of `prompt` by the model in `folder`.

    Args:
        folder: with model.safetensors and result.json.
        prompt: a text, or a sentence to translate.
        options: for a language model length (200), temperature (0.8) and seed (None); for a
            translator beam (4).

    Raises:
        UsageError: no usable model, an empty prompt, or an option of the other kind of model.
    """
    result = _result(folder)
    model = result["model"]
    for name in options:
        if name not in _OPTIONS[model]:
            raise UsageError(f"--{name} does not belong to {model}, the model in {folder!r}")
    work = _continue if model == "char-lm" else _translate
    try:
        return work(folder, result, prompt, **options)
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, OSError) as error:
        raise UsageError(
            f"the files in {folder!r} do not make a {model} model: {one_line(error)}"
        ) from None


def _result(folder: str) -> dict[str, Any]:
    path = os.path.join(folder, "result.json")
    try:
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path!r}: {one_line(error)}") from None
    if not isinstance(result, dict) or result.get("model") not in _OPTIONS:
        raise UsageError(f"{path!r} is not of a text model ({', '.join(_OPTIONS)})")
    if result.get("weights") is None:
        raise UsageError(f"{folder!r} has no weights: no epoch was complete")
    return result


def _loaded(net: Any, folder: str) -> Any:
    net.load_state_dict(load_file(os.path.join(folder, "model.safetensors")))
    return net.eval()


def _continue(
    folder: str,
    result: dict[str, Any],
    prompt: str,
    length: int = 200,
    temperature: float = 0.8,
    seed: int | None = None,
) -> str:
    text = prompt if result["raw"] else clean(prompt)
    if not text.strip():
        raise UsageError(f"--prompt: expected at least one letter, got {prompt!r}")
    vocab = Vocab.from_list(result["vocab"])
    net = _loaded(RNNLM(**result["net"]), folder)
    added = net.generate(vocab[list(text)], length, temperature, seed)
    return text + "".join(vocab.to_tokens(added))


def _translate(folder: str, result: dict[str, Any], prompt: str, beam: int = 4) -> str:
    words = clean_sentence(prompt).split()
    if not words:
        raise UsageError(f"--prompt: expected a sentence, got {prompt!r}")
    source = Vocab.from_list(result["source_vocab"])
    target = Vocab.from_list(result["target_vocab"])
    net = _loaded(Seq2Seq(**result["net"]), folder)
    rows, lengths = encode_sentences([words], source, result["num_steps"])
    made = net.beam_search(
        wrap(rows), wrap(lengths), target[BOS], target[EOS], result["num_steps"], beam
    )
    return " ".join(target.to_tokens(made))
