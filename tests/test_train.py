"""The command line: training, its files, its errors, Ctrl-C; metrics and models."""

from __future__ import annotations

import gzip
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grebe
from grebe import metrics
from grebe.__main__ import main
from grebe.datasets import FashionMNIST
from grebe.models import MLP, LeNet, SoftmaxRegression
from grebe.serialization import load_file
from test_datasets import idx

BUILD = {
    "softmax-regression": lambda: SoftmaxRegression(144),
    "mlp": lambda: MLP(144),
    "lenet": LeNet,
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where no data lies around; without the system's Fashion-MNIST."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FashionMNIST, "system_folder", str(tmp_path / "nowhere"))


def make_data(folder: Path, n: int = 300, size: int = 12, classes: int = 10) -> None:
    """Images that tell their class by a bright column, in noise."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", n), ("t10k", 100)):
        labels = rng.integers(0, classes, count).astype(np.uint8)
        images = rng.integers(0, 60, (count, size, size), dtype=np.uint8)
        images[np.arange(count), :, labels] = 250
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images), 1))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))


def result(folder: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return parsed


# ---- training ----


@pytest.mark.parametrize("model", BUILD)
def test_train(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    make_data(tmp_path / "data set")
    out = tmp_path / "out"
    code = main(
        ["train", model, "--data", "data set", "--out", str(out), "--epochs", "3",
         "--batch-size", "16", "--threads", "2", "--seed", "5"]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert code == 0
    assert "epoch 3/3" in printed
    assert "test accuracy per class" in printed
    got = result(out)
    assert got["accuracy"] > 0.95
    assert got["accuracy"] == got["test_accuracy"][-1]
    assert len(got["loss"]) == len(got["seconds_per_epoch"]) == got["epochs"] == 3
    assert got["loss"][0] > got["loss"][-1]
    assert list(got["class_accuracy"]) == [str(i) for i in range(10)]
    assert got["samples_per_second"] == pytest.approx(900 / got["seconds"])
    assert got["finished"] is True
    assert got["stopped"] is None
    assert got["threads"] == 2
    assert got["seed"] == 5
    assert got["isa"] == grebe._cpu.isa()
    assert got["version"] == grebe.__version__
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in out.iterdir()) == [
        "curve.png", "model.safetensors", "result.json"
    ]  # fmt: skip
    BUILD[model]().load_state_dict(load_file(out / got["weights"]))


def test_training_is_reproducible(tmp_path: Path) -> None:
    make_data(tmp_path / "d")
    for out, seed, threads in (("a", "1", "1"), ("b", "1", "2"), ("c", "2", "2")):
        arguments = ["train", "mlp", "--data", "d", "--out", out, "--epochs", "2"]
        assert main([*arguments, "--seed", seed, "--threads", threads]) == 0
    a, b, c = (result(tmp_path / out) for out in "abc")
    assert a["loss"] == b["loss"]
    assert a["loss"] != c["loss"]
    weights = [(tmp_path / out / "model.safetensors").read_bytes() for out in "abc"]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "adagrad"])
def test_optimizers_and_rates(tmp_path: Path, optimizer: str) -> None:
    make_data(tmp_path / "d")
    arguments = ["train", "softmax-regression", "--data", "d", "--epochs", "2", "--out", "o"]
    assert main([*arguments, "--optimizer", optimizer, "--lr", "0.05"]) == 0
    got = result(tmp_path / "o")
    assert (got["optimizer"], got["lr"]) == (optimizer, 0.05)
    assert got["accuracy"] > 0.9


def test_digits_are_the_default_without_fashion_mnist(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    assert main(["train", "softmax-regression", "--epochs", "3"]) == 0
    got = result(tmp_path / "runs" / "softmax-regression-digits")
    assert got["data"] == "digits"
    assert got["accuracy"] > 0.9


def test_fashion_mnist_is_the_default_where_it_is_found(tmp_path: Path) -> None:
    make_data(tmp_path / "data" / "FashionMNIST" / "raw")
    assert main(["train", "softmax-regression", "--epochs", "1"]) == 0
    got = result(tmp_path / "runs" / "softmax-regression-fashion-mnist")
    assert "Ankle boot" in got["class_accuracy"]


def test_lenet_reaches_97_percent_on_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    arguments = ["train", "lenet", "--data", "digits", "--out", "o", "--epochs", "10"]
    assert main([*arguments, "--threads", "1"]) == 0
    assert result(tmp_path / "o")["accuracy"] >= 0.97


def test_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_data(tmp_path / "d")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["train", "mlp", "--data", "d", "--out", "o", "--epochs", "1"]) == 0
    assert "matplotlib is not installed (pip install grebe[plot])" in capsys.readouterr().out
    assert not (tmp_path / "o" / "curve.png").exists()


def test_divergence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_data(tmp_path / "d")
    arguments = ["train", "mlp", "--data", "d", "--out", "o", "--optimizer", "sgd"]
    with np.errstate(all="ignore"):
        assert main([*arguments, "--lr", "1e30"]) == 1
    errors = capsys.readouterr().err
    assert "the loss became" in errors
    assert "smaller --lr" in errors
    assert result(tmp_path / "o")["weights"] is None


def test_classes_without_test_images(tmp_path: Path) -> None:
    make_data(tmp_path / "d", classes=12)
    labels = tmp_path / "d" / "t10k-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(100, np.uint8)))
    assert main(["train", "mlp", "--data", "d", "--out", "o", "--epochs", "1"]) == 0
    shares = result(tmp_path / "o")["class_accuracy"]
    assert shares["0"] is not None
    assert shares["11"] is None


# ---- Ctrl-C ----


def start(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "grebe", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ctrl_c_keeps_the_last_complete_epoch(tmp_path: Path) -> None:
    make_data(tmp_path / "d", n=5000)
    run = start("train", "mlp", "--data", "d", "--out", "o", "--epochs", "100000")
    assert run.stdout is not None
    while "epoch 2/" not in (line := run.stdout.readline()):
        assert line, run.communicate()
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "Traceback" not in errors
    got = result(tmp_path / "o")
    assert got["stopped"] == "interrupted"
    assert got["finished"] is False
    assert got["epochs"] == len(got["loss"]) >= 2
    assert f"kept the weights of epoch {got['epochs']} in o" in errors
    load_file(tmp_path / "o" / "model.safetensors")
    assert len(list((tmp_path / "o").iterdir())) == 2


def test_ctrl_c_in_the_first_epoch(tmp_path: Path) -> None:
    make_data(tmp_path / "d", n=20_000, size=28)
    run = start("train", "lenet", "--data", "d", "--out", "o", "--batch-size", "1")
    assert run.stdout is not None
    run.stdout.readline()
    time.sleep(0.3)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "Traceback" not in errors
    assert "no epoch was complete" in errors
    assert result(tmp_path / "o")["epochs"] == 0
    assert not (tmp_path / "o" / "model.safetensors").exists()


def test_a_closed_pipe_ends_training_quietly(tmp_path: Path) -> None:
    make_data(tmp_path / "d")
    run = start("train", "mlp", "--data", "d", "--out", "o", "--epochs", "100000")
    assert run.stdout is not None
    run.stdout.readline()
    run.stdout.close()
    assert run.wait(timeout=60) == 1
    assert run.stderr is not None
    assert run.stderr.read() == ""
    run.stderr.close()


# ---- wrong command lines ----


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "COMMAND"),
        (["fly"], "'fly'"),
        (["train"], "MODEL"),
        (["train", "resnet"], "'resnet' (choose from"),
        (["train", "mlp", "--resize", "0"], "integer from 1 to 4096, got '0'"),
        (["train", "mlp", "--epochs", "0"], "integer from 1 to 1000000, got '0'"),
        (["train", "mlp", "--epochs", "two"], "got 'two'"),
        (["train", "mlp", "--batch-size", "-3"], "got '-3'"),
        (["train", "mlp", "--lr", "0"], "number above 0, got '0'"),
        (["train", "mlp", "--lr", "nan"], "got 'nan'"),
        (["train", "mlp", "--optimizer", "sgdm"], "'sgdm' (choose from"),
        (["train", "mlp", "--threads", "0"], "got '0'"),
        (["train", "mlp", "--seed", "-1"], "got '-1'"),
        (["train", "mlp", "--seed", str(2**63)], f"to {2**63 - 1}"),
        (["train", "mlp", "--out", ""], "expected a path"),
        (["train", "mlp", "--data", ""], "expected a path"),
        (["train", "mlp", "--fast"], "--fast"),
        (["info", "extra"], "extra"),
    ],
)
def test_wrong_flags(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    captured = capsys.readouterr()
    assert caught.value.code == 2
    assert text in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def wrong_images(folder: Path) -> None:
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"no images")


def wrong_size(folder: Path) -> None:
    data = gzip.compress(idx(np.zeros((100, 9, 9), np.uint8)))
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(data)


def no_labels(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte").unlink()


def out_is_a_file(folder: Path) -> None:
    (folder.parent / "o").write_text("")


@pytest.mark.parametrize(
    ("arguments", "damage", "text"),
    [
        (["--data", "nowhere"], None, "got 'nowhere'"),
        (["--data", "mnist"], None, "MNIST: expected the files train-images-idx3-ubyte"),
        (["--data", "fashion-mnist", "--root", "elsewhere"], None, "'elsewhere/raw'"),
        (["--data", "d"], wrong_images, "train-images-idx3-ubyte.gz' is no IDX file"),
        (["--data", "d"], wrong_size, "training images are 12x12 but test images are 9x9"),
        (["--data", "d"], no_labels, "t10k-labels-idx1-ubyte"),
        (["--data", "d"], out_is_a_file, "--out: expected a folder to write to, got 'o'"),
        (["--data", "d", "--out", "/proc/nowhere"], None, "'/proc/nowhere'"),
    ],
)
def test_wrong_files(
    tmp_path: Path,
    arguments: list[str],
    damage: Any,
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_data(tmp_path / "d")
    if damage is not None:
        damage(tmp_path / "d")
    assert main(["train", "mlp", "--out", "o", *arguments]) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_digits_without_scikit_learn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["train", "mlp", "--data", "digits"]) == 2
    assert "pip install grebe[data]" in capsys.readouterr().err


def test_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    make_data(tmp_path / "d")
    monkeypatch.setattr(os, "fsync", full)
    assert main(["train", "mlp", "--data", "d", "--out", "o", "--epochs", "1"]) == 1
    assert capsys.readouterr().err == "grebe: error: [Errno 28] No space left on device\n"


def test_help_and_info(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["train", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
    text = capsys.readouterr().out
    for word in ("softmax-regression", "fashion-mnist", "--batch-size", "result.json", "Ctrl-C"):
        assert word in text
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for word in (grebe.__version__, grebe._cpu.isa(), "built levels", "threads", "CUDA", "MiB"):
        assert word in text


def test_the_command_line_starts_without_loading_everything() -> None:
    code = (
        "import sys; import grebe.__main__ as m; m.parser()\n"
        "heavy = {'tqdm', 'safetensors', 'matplotlib', 'sklearn', 'grebe.nn', 'grebe.train'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ---- metrics ----


def test_metrics() -> None:
    scores = grebe.tensor([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])
    labels = grebe.tensor([1, 0, 2, 1])
    assert metrics.accuracy(scores, labels) == 0.5
    assert metrics.accuracy(labels, labels) == 1
    assert metrics.top_k_accuracy(scores, labels, 1) == 0.5
    assert metrics.top_k_accuracy(scores, labels, 2) == 1
    assert metrics.confusion_matrix(scores, labels).tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert metrics.class_accuracy(scores, labels).tolist() == [1, 0.5, 0]
    assert metrics.confusion_matrix([0, 1], [0, 0], 3).tolist() == [[1, 1, 0], [0] * 3, [0] * 3]
    assert math.isnan(metrics.class_accuracy([0], [0], 2)[1])
    assert math.isnan(metrics.accuracy(np.zeros((0, 3)), np.zeros(0, np.int64)))


@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_metrics_agree(n: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = rng.standard_normal((n, classes)), rng.integers(0, classes, n)
    matrix = metrics.confusion_matrix(scores, labels)
    assert matrix.sum() == n
    assert matrix.trace() / n == pytest.approx(metrics.accuracy(scores, labels))
    assert metrics.top_k_accuracy(scores, labels, 1) == metrics.accuracy(scores, labels)
    assert metrics.top_k_accuracy(scores, labels, classes) == 1


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: metrics.accuracy([[0.1, 0.9]], [0, 1]), r"\[2, C\] or labels \[2\], got \[1, 2\]"),
        (lambda: metrics.accuracy([0, 1], [0.5, 1]), "integers"),
        (lambda: metrics.accuracy(np.zeros((2, 0)), [0, 1]), "no classes"),
        (lambda: metrics.top_k_accuracy([0, 1], [0, 1]), r"scores \[N, C\]"),
        (lambda: metrics.top_k_accuracy([[0.1, 0.9]], [0], 3), r"k must be in \[1, 2\], got 3"),
        (lambda: metrics.confusion_matrix([0, 3], [0, 1], 3), "label 3 in input"),
        (lambda: metrics.confusion_matrix([0, 1], [0, -1]), "label -1 in target"),
    ],
)
def test_metrics_errors(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


# ---- models ----


def test_models() -> None:
    x = grebe.zeros(2, 1, 28, 28)
    assert SoftmaxRegression()(x).shape == (2, 10)
    assert MLP(num_hidden=7, num_classes=3)(x).shape == (2, 3)
    assert LeNet()(x).shape == (2, 10)
    assert LeNet(5, 3, (32, 20))(grebe.zeros(2, 3, 32, 20)).shape == (2, 5)
    assert sum(p.numel() for p in LeNet().parameters()) == 61_706
    with pytest.raises(ValueError, match="at least 12x12"):
        LeNet(image_size=(8, 8))
