"""The command line on Transformers: their files, samples and errors."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

import grebe
from grebe.__main__ import main
from grebe.runner import Stepper, warm_cosine
from test_train import make_data, result

WORDS = dict(
    zip("one two three four five six".split(), "un deux trois quatre cinq six".split(), strict=True)
)
SMALL = ["--hidden", "16", "--layers", "1", "--heads", "2", "--threads", "1", "--out", "o"]


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("The quick brown Fox; it jumps over the lazy dog. " * 60)
    lines = (f"{a} {b}.\t{y} {x} !" for a, x in WORDS.items() for b, y in WORDS.items())
    Path("p.tsv").write_text("\n".join(lines))
    rng = np.random.default_rng(0)
    names = [*rng.permutation(list(WORDS) * 60)]
    blocks = [f"{a} sees {a}. Then {a} calls {b}." for a, b in itertools.pairwise(names)]
    Path("b.txt").write_text("\n\n".join(blocks))


def train(*arguments: str) -> int:
    return main(["train", *arguments, *SMALL])


GPT = ["gpt", "--data", "t.txt", "--num-steps", "16", "--batch-size", "4"]


def test_gpt(capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*GPT, "--epochs", "6", "--lr", "0.01", "--dropout", "0") == 0
    printed = capsys.readouterr().out
    got = result(Path("o"))
    assert f"perplexity of the held-out text: {got['perplexity']:.3f}" in printed
    assert printed.count("|") == 6
    assert got["perplexity"] == got["test_perplexity"][-1] < 2.5
    assert got["net"]["n_positions"] == 16
    generate = ["generate", "o", "--prompt", "The quick", "--length", "30"]
    for options in (["--temperature", "0"], ["--top-k", "3", "--seed", "1"], ["--top-p", "0.5"]):
        assert main([*generate, *options]) == 0
        captured = capsys.readouterr()
        assert captured.out.startswith("the quick ")
        assert len(captured.out) == 9 + 30 + 1
        assert "tokens/s" in captured.err


PNG = b"\x89PNG\r\n"


def test_heat_maps_of_gpt(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert train(*GPT, "--epochs", "1") == 0
    generate = ["generate", "o", "--prompt", "The $ quick", "--length", "30"]
    assert main([*generate, "--heatmaps", "h.png"]) == 0
    assert Path("h.png").read_bytes().startswith(PNG)
    capsys.readouterr()
    assert main([*generate, "--heatmaps", "no/h.png"]) == 2
    assert "--heatmaps: cannot write 'no/h.png'" in capsys.readouterr().err
    assert main([*generate, "--beam", "3"]) == 2


def test_transformer(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    options = ["--epochs", "40", "--batch-size", "8", "--lr", "0.01", "--dropout", "0"]
    assert train("transformer", "--data", "p.tsv", "--min-freq", "1", *options) == 0
    printed = capsys.readouterr().out
    got = result(Path("o"))
    assert f"BLEU of the held-out sentences: {got['bleu']:.4f}" in printed
    assert got["bleu"] > 0.5
    assert got["loss"][-1] < 0.2
    for beam in ([], ["--beam", "1"], ["--heatmaps", "h.png"]):
        assert main(["generate", "o", "--prompt", "Two three.", *beam]) == 0
        assert capsys.readouterr().out == "trois deux !\n"
    assert Path("h.png").read_bytes().startswith(PNG)


def test_bert(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    options = ["--epochs", "16", "--batch-size", "16", "--lr", "0.01", "--dropout", "0"]
    assert train("bert", "--data", "b.txt", "--num-steps", "16", *options) == 0
    printed = capsys.readouterr().out
    got = result(Path("o"))
    assert "accuracy of the held-out hidden words" in printed
    assert printed.count("<cls>") == 16
    assert got["test_mlm_accuracy"][-1] > 0.5
    assert got["test_mlm_loss"][-1] < got["test_mlm_loss"][0]
    fill = ["generate", "o", "--prompt", "Two <mask> two."]
    assert main([*fill, "--heatmaps", "h.png"]) == 0
    assert capsys.readouterr().out == "two sees two .\n"
    assert Path("h.png").read_bytes().startswith(PNG)
    assert main([*fill, "--top", "3"]) == 0
    assert capsys.readouterr().out.startswith("two sees|")
    assert main(["generate", "o", "--prompt", "Two sees"]) == 2
    assert "a text with <mask> in it" in capsys.readouterr().err
    assert main(["generate", "o", "--prompt", "<mask> " * 15]) == 2
    assert "at most 14 words" in capsys.readouterr().err


def test_vit(tmp_path: Path) -> None:
    make_data(tmp_path / "images", size=12)
    assert train("vit", "--data", "images", "--resize", "12", "--patch", "4", "--epochs", "16",
                 "--lr", "0.005", "--batch-size", "16", "--dropout", "0") == 0  # fmt: skip
    got = result(Path("o"))
    assert got["accuracy"] > 0.8
    assert got["loss"][-1] < got["loss"][0] / 2


def test_accumulation_is_one_update_of_larger_batches() -> None:
    common = ("--epochs", "1", "--dropout", "0", "--optimizer", "sgd", "--seed", "3")
    assert train(*GPT, *common, "--accumulate", "3") == 0
    assert result(Path("o"))["accumulate"] == 3

    weights = []
    x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    for accumulate in (1, 3):
        grebe.manual_seed(0)
        net = grebe.nn.Linear(4, 2)
        step = Stepper(net, grebe.optim.SGD(net.parameters(), lr=0.1), 0.5, accumulate)
        for part in np.split(x, accumulate):
            step((net(grebe.from_numpy(part)) ** 2).mean(), 0)
        assert step.updates == 1
        weights.append(net.weight.detach().numpy())
    np.testing.assert_allclose(*weights, atol=1e-6)


def test_leftover_batches_make_an_update() -> None:
    net = grebe.nn.Linear(2, 1)
    step = Stepper(net, grebe.optim.SGD(net.parameters(), lr=0.1), None, 2)
    for expected in (0, 1, 1):
        step(net(grebe.ones(1, 2)).sum(), 0)
        assert step.updates == expected
    step.flush()
    step.flush()
    assert step.updates == 2


def test_learning_rate() -> None:
    factor = warm_cosine(4, 24, 0.1)
    assert [factor(i) for i in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factor(14) == pytest.approx(0.55)
    assert factor(24) == factor(99) == pytest.approx(0.1)
    net = grebe.nn.Linear(2, 1)
    step = Stepper(net, grebe.optim.SGD(net.parameters(), lr=2.0), factor=factor)
    step(net(grebe.ones(1, 2)).sum(), 0)
    assert step.optimizer.param_groups[0]["lr"] == 0.5


def test_checkpoints_and_bfloat16() -> None:
    found = []
    for options in ([], ["--checkpoint"], ["--bf16"]):
        assert train(*GPT, "--epochs", "2", "--lr", "0.01", *options) == 0
        got = result(Path("o"))
        assert got["bf16"] == (options == ["--bf16"])
        found.append(got["loss"])
    assert found[0] == found[1]  # to the bit, dropout and all
    assert found[0] != found[2] == pytest.approx(found[0], rel=0.1)
    for model in (["transformer", "--data", "p.tsv"], ["bert", "--data", "b.txt"]):
        assert train(*model, "--epochs", "1", "--checkpoint", "--bf16") == 0
    make_data(Path("images"), size=12)
    assert train("vit", "--data", "images", "--resize", "12", "--patch", "4", "--epochs", "1",
                 "--checkpoint", "--bf16") == 0  # fmt: skip
    assert main(["train", "mlp", "--data", "images", "--epochs", "1", "--bf16"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpt", "--heads", "3"], "--hidden must be divisible by --heads, got 128 and 3"),
        (["gpt", "--cell", "gru"], "--cell does not belong to gpt"),
        (["gpt", "--data", "nowhere"], "prose or a text file, got 'nowhere'"),
        (["gpt", "--data", "t.txt", "--batch-size", "5000"], "try a smaller --batch-size"),
        (["transformer"], "transformer needs a file with a sentence, a tab"),
        (["transformer", "--data", "p.tsv", "--attention"], "does not belong to transformer"),
        (["bert", "--data", "t.txt"], "expected several paragraphs"),
        (["bert", "--hidden", "9"], "got 9 and 2"),
        (["vit", "--data", "digits", "--patch", "7"], "--patch: 7 does not divide images of 96x96"),
        (["vit", "--data", "digits", "--heads", "7"], "got 512 and 7"),
        (["lenet", "--checkpoint"], "--checkpoint does not belong to lenet"),
        (["lenet", "--heads", "2"], "--heads does not belong to lenet"),
    ],
)
def test_wrong_options(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")
