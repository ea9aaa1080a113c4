"""The command line on texts: char-lm, seq2seq, generate; their files and errors."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from grebe.__main__ import main
from grebe.serialization import load_file
from grebe.train_text import split_pairs
from test_train import result, start

NUMBERS = "one two three four five six seven eight nine ten".split()
FRENCH = "un deux trois quatre cinq six sept huit neuf dix".split()
SMALL = ["--hidden", "16", "--threads", "1"]


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("The quick brown Fox; it jumps over the lazy dog. " * 60)
    pairs = zip(
        (f"{a} {b}." for a in NUMBERS for b in NUMBERS),
        (f"{a} {b} !" for a in FRENCH for b in FRENCH),
        strict=True,
    )
    Path("p.tsv").write_text("".join(f"{a}\t{b}\tby nobody\n" for a, b in pairs))


def train(*arguments: str) -> int:
    return main(["train", *arguments, "--out", "o", *SMALL])


# ---- language model ----


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_char_lm(cell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert train("char-lm", "--data", "t.txt", "--epochs", "12", "--num-steps", "20",
                 "--batch-size", "4", "--lr", "0.02", "--cell", cell) == 0  # fmt: skip
    printed = capsys.readouterr().out
    got = result(Path("o"))
    assert f"perplexity of the held-out text: {got['perplexity']:.3f}" in printed
    assert printed.count("|") == 12
    assert got["perplexity"] == got["test_perplexity"][-1] < 1.5
    assert got["loss"][-1] < got["loss"][0]
    assert got["net"] == {"vocab_size": 28, "num_hiddens": 16, "kind": cell, "num_layers": 1,
                          "dropout": 0.0}  # fmt: skip
    assert got["vocab"][:2] == ["<unk>", " "]
    assert (got["model"], got["finished"], got["epochs"]) == ("char-lm", True, 12)
    assert got["tokens_per_second"] > 0
    assert sorted(p.name for p in Path("o").iterdir()) == [
        "curve.png", "model.safetensors", "result.json"
    ]  # fmt: skip
    arguments = ["generate", "o", "--prompt", "The QUICK", "--length", "19"]
    assert main([*arguments, "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "the quick brown fox it jumps\n"
    drawn = []
    for seed in ("1", "1", "2"):
        assert main([*arguments, "--temperature", "2", "--seed", seed]) == 0
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] != drawn[2]


def test_deep_and_raw(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("char-lm", "--data", "t.txt", "--epochs", "2", "--batch-size", "4", "--raw",
                 "--layers", "2", "--dropout", "0.1", "--clip", "0.5") == 0  # fmt: skip
    got = result(Path("o"))
    assert {"T", ";", "."} <= set(got["vocab"])
    assert (got["raw"], got["clip"], got["net"]["num_layers"]) == (True, 0.5, 2)
    capsys.readouterr()
    assert main(["generate", "o", "--prompt", "T\u00e9;", "--length", "5"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("T\u00e9;")


def test_prose_is_the_default() -> None:
    arguments = ["train", "char-lm", "--epochs", "1", "--batch-size", "64", "--hidden", "8"]
    assert main([*arguments, "--threads", "2"]) == 0
    assert result(Path("runs/char-lm-prose"))["perplexity"] < 26


def test_training_is_reproducible() -> None:
    weights = []
    for seed, threads in (("1", "1"), ("1", "2"), ("2", "2")):
        arguments = ["train", "char-lm", "--data", "t.txt", "--batch-size", "4", "--epochs", "2"]
        options = ["--hidden", "20", "--out", "o", "--seed", seed, "--threads", threads]
        assert main([*arguments, *options]) == 0
        weights.append(Path("o/model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


# ---- translator ----


@pytest.mark.parametrize(
    "options", [[], ["--attention", "--bidirectional", "--layers", "1", "--dropout", "0"]]
)
def test_seq2seq(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train("seq2seq", "--data", "p.tsv", "--epochs", "25", "--batch-size", "16", "--embed",
                 "12", "--hidden", "32", "--lr", "0.01", *options) == 0  # fmt: skip
    printed = capsys.readouterr().out
    got = result(Path("o"))
    assert f"BLEU of the held-out sentences: {got['bleu']:.4f}" in printed
    assert printed.count(" => ") == 50
    assert got["bleu"] == got["test_bleu"][-1]
    assert got["loss"][-1] < got["loss"][0] / 2
    assert got["bleu"] > 0.5 or not options
    assert got["net"]["attention"] == ("--attention" in options)
    assert got["source_vocab"][:4] == ["<unk>", "<pad>", "<bos>", "<eos>"]
    assert len(got["target_vocab"]) == 15
    for beam in ([], ["--beam", "1"]):
        assert main(["generate", "o", "--prompt", "Two two.", *beam]) == 0
        assert capsys.readouterr().out.split()[-1] == "!"


def test_the_split_keeps_translations_together() -> None:
    sources = [[str(i // 2)] for i in range(60)]
    targets = [[f"t{i}"] for i in range(60)]
    pairs, test = split_pairs(sources, targets)
    assert len(test) == 3
    assert all(len(labels) == 2 for _, labels in test)
    assert len(pairs) == 54
    assert not {s[0] for s, _ in pairs} & {s[0] for s, _ in test}
    assert split_pairs(sources[:8], targets[:8])[1] == []


# ---- Ctrl-C ----


def test_ctrl_c_keeps_the_last_complete_epoch() -> None:
    run = start("train", "char-lm", "--data", "t.txt", "--out", "o", "--batch-size", "4",
                "--epochs", "100000", *SMALL)  # fmt: skip
    assert run.stdout is not None
    while "epoch 2/" not in (line := run.stdout.readline()):
        assert line, run.communicate()
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "Traceback" not in errors
    got = result(Path("o"))
    assert (got["stopped"], got["finished"]) == ("interrupted", False)
    assert got["epochs"] == len(got["test_perplexity"]) >= 2
    load_file("o/model.safetensors")
    assert main(["generate", "o", "--prompt", "the"]) == 0


def test_divergence(capsys: pytest.CaptureFixture[str]) -> None:
    code = train("char-lm", "--data", "t.txt", "--batch-size", "4", "--lr", "1e39", "--cell", "rnn",
                 "--epochs", "3", "--optimizer", "sgd", "--clip", "1e38")  # fmt: skip
    assert code == 1
    assert "smaller --lr" in capsys.readouterr().err


# ---- wrong command lines ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mlp", "--hidden", "3"], "--hidden does not belong to mlp"),
        (["lenet", "--attention"], "--attention does not belong to lenet"),
        (["char-lm", "--attention"], "--attention does not belong to char-lm"),
        (["char-lm", "--resize", "3"], "--resize does not belong to char-lm"),
        (["char-lm", "--min-freq", "3"], "--min-freq does not belong to char-lm"),
        (["seq2seq", "--cell", "lstm"], "--cell does not belong to seq2seq"),
        (["seq2seq", "--raw"], "--raw does not belong to seq2seq"),
        (["seq2seq", "--download"], "--download does not belong to seq2seq"),
        (["char-lm", "--dropout", "0.5"], "it needs --layers 2 or more"),
        (["seq2seq", "--data", "p.tsv", "--layers", "1", "--dropout", "0.5"], "or --attention"),
        (["char-lm", "--data", "nowhere"], "prose or a text file, got 'nowhere'"),
        (["char-lm", "--data", "t.txt", "--batch-size", "5000"], "try a smaller --batch-size"),
        (["char-lm", "--data", "empty.txt"], "'empty.txt' holds no text"),
        (["char-lm", "--data", "digits.txt"], "characters for training are too few"),
        (["seq2seq"], "seq2seq needs a file with a sentence, a tab and its translation"),
        (["seq2seq", "--data", "t.txt"], "'t.txt', line 1: expected two sentences"),
        (["seq2seq", "--data", "p.tsv", "--max-pairs", "9"], "at least 10 different sentences"),
        (["char-lm", "--data", "t.txt", "--out", "t.txt"], "expected a folder to write to"),
    ],
)
def test_wrong_options(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty.txt").write_text("")
    Path("digits.txt").write_text("1 2 3")
    assert main(["train", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "char-lm", "--dropout", "1"], "from 0 to below 1, got '1'"),
        (["train", "char-lm", "--cell", "cnn"], "'cnn' (choose from"),
        (["train", "char-lm", "--hidden", "0"], "integer from 1"),
        (["generate", "o"], "--prompt"),
        (["generate", "--prompt", "a"], "DIR"),
        (["generate", "o", "--prompt", "a", "--temperature", "-1"], "got '-1'"),
        (["generate", "o", "--prompt", "a", "--length", "0"], "got '0'"),
    ],
)
def test_wrong_values(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def _edit(**changes: Any) -> None:
    path = Path("o/result.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_generate_refuses_what_it_cannot_use(capsys: pytest.CaptureFixture[str]) -> None:
    def refused(message: str, *arguments: str) -> None:
        capsys.readouterr()
        assert main(["generate", "o", *(arguments or ("--prompt", "dog"))]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert (captured.err.count("\n"), captured.out) == (1, "")

    refused("cannot read 'o/result.json'")
    assert train("char-lm", "--data", "t.txt", "--epochs", "1", "--batch-size", "4") == 0
    refused("--beam does not belong to char-lm", "--prompt", "a", "--beam", "2")
    refused("at least one letter, got '12'", "--prompt", "12")
    kept = result(Path("o"))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"model": "lenet"}, "is not of a text model (char-lm, gpt, seq2seq, "),
        ({"weights": None}, "no epoch was complete"),
        ({"vocab": ["a"]}, "do not make a char-lm model: Vocab"),
        ({"vocab": kept["vocab"][:5]}, "do not make a char-lm model"),
        ({"net": {"vocab_size": 3}}, "do not make a char-lm model"),
        ({"net": 7}, "do not make a char-lm model"),
    ]
    for changes, message in wrong:
        _edit(**{**kept, **changes})
        refused(message)
    _edit(**kept)
    Path("o/model.safetensors").write_bytes(b"nothing")
    refused("'o/model.safetensors' is not a valid safetensors file")
    Path("o/result.json").write_text("{")
    refused("cannot read 'o/result.json'")
