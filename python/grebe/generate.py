"""Using a trained text model from the command line: `python -m grebe generate`."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from . import _cpu
from ._cpu import wrap
from .models import GPT, RNNLM, GPTConfig, Seq2Seq
from .runner import UsageError, one_line
from .serialization import load_file
from .text import BOS, EOS, Vocab, clean, clean_sentence, encode_sentences

_SAMPLING = {"length", "temperature", "seed"}
_OPTIONS = {"char-lm": _SAMPLING, "seq2seq": {"beam"}, "gpt": _SAMPLING | {"top_k", "top_p"}}


def generate(folder: str, prompt: str, **options: Any) -> str:
    """The continued text or the translation of `prompt` by the model in `folder`.

    Args:
        folder: with model.safetensors and result.json.
        prompt: a text, or a sentence to translate.
        options: for a language model length (200), temperature (0.8) and seed (None), for GPT also
            top_k and top_p (None); for a translator beam (4).

    How many tokens a language model makes in a second goes to stderr.

    Raises:
        UsageError: no usable model, an empty prompt, or an option of the other kind of model.
    """
    result = _result(folder)
    model = result["model"]
    for name in options:
        if name not in _OPTIONS[model]:
            raise UsageError(f"--{name} does not belong to {model}, the model in {folder!r}")
    work = _translate if model == "seq2seq" else _continue
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
    **options: Any,
) -> str:
    text = prompt if result["raw"] else clean(prompt)
    if not text.strip():
        raise UsageError(f"--prompt: expected at least one letter, got {prompt!r}")
    vocab = Vocab.from_list(result["vocab"])
    net = _language_model(folder, result)
    start = time.perf_counter()
    added = net.generate(vocab[list(text)], length, temperature, seed=seed, **options)
    speed = length / (time.perf_counter() - start)
    text += "".join(vocab.to_tokens(added))
    print(f"{speed:,.0f} tokens/s, {_cpu.num_threads()} threads", file=sys.stderr)
    return text


def _language_model(folder: str, result: dict[str, Any]) -> Any:
    net = result["net"]
    return _loaded(RNNLM(**net) if result["model"] == "char-lm" else GPT(GPTConfig(**net)), folder)


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
