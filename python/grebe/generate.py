"""Using a trained text model from the command line: `python -m grebe generate`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _cpu
from ._cpu import wrap
from .heatmaps import draw_heatmaps
from .masking import CLS, MASK, SEP, SPECIAL, words_of
from .models import (
    GPT,
    RNNLM,
    BERTConfig,
    BERTForPreTraining,
    GPTConfig,
    Seq2Seq,
    TransformerSeq2Seq,
    attention_maps,
)
from .models.sampling import evaluation
from .runner import UsageError, one_line
from .serialization import load_file
from .text import BOS, EOS, UNK, Vocab, clean, clean_sentence, encode_sentences

_SAMPLING = {"length", "temperature", "seed"}
_OPTIONS = {
    "char-lm": _SAMPLING,
    "gpt": _SAMPLING | {"top_k", "top_p", "heatmaps"},
    "seq2seq": {"beam", "heatmaps"},
    "transformer": {"beam", "heatmaps"},
    "bert": {"top", "heatmaps"},
}


def generate(folder: str, prompt: str, **options: Any) -> str:
    """What the model in `folder` makes of `prompt`: its continuation, translation or filled gaps.

    Args:
        folder: with model.safetensors and result.json.
        prompt: a text, a sentence to translate, or for BERT a text with `<mask>` in it.
        options: for a language model length (200), temperature (0.8) and seed (None), for GPT also
            top_k and top_p (None); for a translator beam (4); for BERT top (1). heatmaps (None):
            the PNG to draw the attention weights to.

    How many tokens a language model makes in a second goes to stderr.

    Raises:
        UsageError: no usable model, an empty prompt, or an option of the other kind of model.
    """
    result = _result(folder)
    model = result["model"]
    for name in options:
        if name not in _OPTIONS[model]:
            raise UsageError(f"--{name} does not belong to {model}, the model in {folder!r}")
    work: Any = {"char-lm": _continue, "gpt": _continue, "bert": _fill}.get(model, _translate)
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
    heatmaps: str | None = None,
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
    if heatmaps is not None:
        read = text[-net.config.n_positions :]
        with evaluation(net), attention_maps(net) as maps:
            net(wrap(vocab.encode(read)[None]))
        letters = [repr(c)[1:-1] for c in read]
        _draw(heatmaps, _heads(maps), letters, letters)
    print(f"{speed:,.0f} tokens/s, {_cpu.num_threads()} threads", file=sys.stderr)
    return text


def _language_model(folder: str, result: dict[str, Any]) -> Any:
    net = result["net"]
    return _loaded(RNNLM(**net) if result["model"] == "char-lm" else GPT(GPTConfig(**net)), folder)


def _translate(
    folder: str, result: dict[str, Any], prompt: str, beam: int = 4, heatmaps: str | None = None
) -> str:
    words = clean_sentence(prompt).split()
    if not words:
        raise UsageError(f"--prompt: expected a sentence, got {prompt!r}")
    source = Vocab.from_list(result["source_vocab"])
    target = Vocab.from_list(result["target_vocab"])
    kind = Seq2Seq if result["model"] == "seq2seq" else TransformerSeq2Seq
    net = _loaded(kind(**result["net"]), folder)
    rows, lengths = encode_sentences([words], source, result["num_steps"])
    made = net.beam_search(
        wrap(rows), wrap(lengths), target[BOS], target[EOS], result["num_steps"], beam
    )
    if heatmaps is not None:
        count = int(lengths[0])
        inputs = wrap(rows[:, :count]), wrap(lengths), wrap(np.array([[target[BOS], *made]]))
        maps = _cross_attention(net, inputs)
        _draw(heatmaps, maps, [*target.to_tokens(made), EOS], source.to_tokens(rows[0, :count]))
    return " ".join(target.to_tokens(made))


def _cross_attention(net: Any, inputs: tuple[Any, ...]) -> list[tuple[str, Any]]:
    """Where the decoder looks in the source for each word that it writes."""
    with evaluation(net):
        if isinstance(net, TransformerSeq2Seq):
            with attention_maps(net) as found:
                net(*inputs)
            return _heads({n: w for n, w in found.items() if "multihead_attn" in n})
        net(*inputs)
    weights = getattr(net.decoder, "attention_weights", None)
    if weights is None:
        raise UsageError("--heatmaps: this translator was trained without --attention")
    return [("attention", weights.numpy()[0])]


# ---- BERT ----


def _fill(
    folder: str, result: dict[str, Any], prompt: str, top: int = 1, heatmaps: str | None = None
) -> str:
    """The prompt with its gaps filled; with `top` above 1 the likeliest words of each."""
    vocab = Vocab.from_list(result["vocab"])
    words = [CLS, *words_of(prompt), SEP]
    if MASK not in words:
        raise UsageError(f"--prompt: expected a text with {MASK} in it, got {prompt!r}")
    if len(words) > result["num_steps"]:
        raise UsageError(f"--prompt: expected at most {result['num_steps'] - 2} words")
    net = _loaded(BERTForPreTraining(BERTConfig(**result["net"])), folder)
    tokens = vocab.encode(words)[None]
    gaps = np.flatnonzero(tokens[0] == vocab[MASK])
    with evaluation(net), attention_maps(net) as maps:
        logits, _ = net(wrap(tokens), None, None, wrap(gaps))
    scores = logits.numpy().copy()
    scores[:, vocab[[UNK, *SPECIAL]]] = -np.inf
    for gap, row in zip(gaps, scores, strict=True):
        words[gap] = "|".join(vocab.to_tokens(np.argsort(-row, kind="stable")[:top]))
    if heatmaps is not None:
        _draw(heatmaps, _heads(maps), words, words)
    return " ".join(words[1:-1])


# ---- heat maps ----


def _heads(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Each head's weights for the first text, with a title."""
    return [
        (f"layer {i + 1}, head {h + 1}", weights)
        for i, heads in enumerate(found.values())
        for h, weights in enumerate(heads.numpy()[0])
    ]


def _draw(path: str, maps: list[tuple[str, Any]], rows: list[str], columns: list[str]) -> None:
    try:
        draw_heatmaps(path, maps, rows, columns)
    except ImportError:
        raise UsageError("--heatmaps needs matplotlib: pip install grebe[plot]") from None
    except OSError as error:
        raise UsageError(f"--heatmaps: cannot write {path!r}: {error.strerror}") from None
    print(f"heat maps in {path}", file=sys.stderr)
