"""The command line: `python -m grebe train`, `generate`, `run-as-torch` and `info`."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

MODELS = (
    "softmax-regression", "mlp", "lenet", "alexnet", "vgg11", "nin", "googlenet", "resnet18",
    "resnet34", "resnet50", "resnext50", "densenet", "vit",
)  # fmt: skip
TEXT_MODELS = ("char-lm", "seq2seq")
TRANSFORMERS = ("transformer", "gpt", "bert")
OPTIMIZERS = ("sgd", "adam", "adamw", "adagrad")


class Parser(argparse.ArgumentParser):
    """Tells a wrong command line in one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Print `message` and exit."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _integer(low: int, high: int) -> Any:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"expected an integer from {low} to {high}, got {text!r}"
            )
        return value

    return parse


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected a path, got {text!r}")
    return text


def _from_zero(text: str) -> float:
    return 0.0 if text.strip() in ("0", "0.0") else _positive(text)


def _share(text: str) -> float:
    value = _from_zero(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, got {text!r}")
    return value


def _probability(text: str) -> float:
    value = _positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and up to 1, got {text!r}")
    return value


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line.

    An option that is not given has no value: what it is then, and which model takes it, is the
    models' business.
    """
    top = Parser(prog="grebe", description="Deep learning on kernels that can be read.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    train = commands.add_parser(
        "train",
        help="train an image classifier, a language model or a translator",
        description="Train an image classifier, a language model of characters (char-lm) or a "
        "translator (seq2seq); report loss, accuracy, perplexity or BLEU, and speed.",
        epilog="DIR gets model.safetensors, result.json and, with matplotlib, curve.png. Ctrl-C "
        "keeps the last complete epoch. An option of another kind of model is an error.",
        argument_default=argparse.SUPPRESS,
    )
    train.add_argument("model", metavar="MODEL", choices=MODELS + TEXT_MODELS + TRANSFORMERS,
                       help=", ".join(MODELS + TEXT_MODELS + TRANSFORMERS))  # fmt: skip
    _add_common(train)
    _add_images(train.add_argument_group("images"))
    _add_texts(train.add_argument_group("texts"))
    generate = commands.add_parser(
        "generate",
        help="continue or translate a text",
        description="Continue a text by what `train char-lm` left in DIR, or translate a sentence "
        "by what `train seq2seq` left there.",
        argument_default=argparse.SUPPRESS,
    )
    _add_generate(generate)
    script = commands.add_parser(
        "run-as-torch",
        help="run a script in which `import torch` means grebe",
        description="Runs a Python script in which `import torch` means grebe.",
    )
    script.add_argument("script", metavar="SCRIPT", type=_path)
    script.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER)
    commands.add_parser(
        "info",
        help="tell version, instruction set, threads, CUDA and memory",
        description="Tell what this installation of grebe is and what it runs on.",
    )
    return top


def _add_common(train: argparse.ArgumentParser) -> None:
    train.add_argument(
        "--data",
        metavar="NAME",
        type=_path,
        help="images: digits, mnist, fashion-mnist, or a folder with IDX files named as MNIST's "
        "(default: fashion-mnist if its files are found, else digits); char-lm: prose, which is in "
        "every Python, or a text file (default: prose); seq2seq: a file with a sentence, a tab and "
        "its translation on each line",
    )
    train.add_argument("--epochs", metavar="N", type=_integer(1, 10**6), help="default: 10; with "
                       "less than 10,000 images 30; seq2seq 20")  # fmt: skip
    train.add_argument("--batch-size", metavar="N", type=_integer(1, 10**6), help="default: 256, "
                       "or 32 with less than 10,000 images; char-lm 32, seq2seq 64")  # fmt: skip
    train.add_argument("--lr", metavar="X", type=_positive, help="learning rate (default: the "
                       "model's and optimizer's)")  # fmt: skip
    train.add_argument(
        "--optimizer",
        metavar="NAME",
        choices=OPTIMIZERS,
        help=f"{', '.join(OPTIMIZERS)} (default: the model's)",
    )
    train.add_argument("--accumulate", metavar="N", type=_integer(1, 10**6), help="make one update "
                       "from the gradients of N batches (default: 1)")  # fmt: skip
    train.add_argument("--bf16", action="store_true", help="matrix products and attention in "
                       "bfloat16 while training, weights in float32")  # fmt: skip
    train.add_argument("--checkpoint", action="store_true", help="Transformers: keep only what "
                       "goes into each layer, and compute the rest again in backward")  # fmt: skip
    train.add_argument("--threads", metavar="N", type=_integer(1, 1024), help="default: all cores")
    train.add_argument("--seed", metavar="N", type=_integer(0, 2**63 - 1),
                       help="of initial weights and order (default: 0)")  # fmt: skip
    train.add_argument(
        "--out", metavar="DIR", type=_path, help="for the results (default: runs/MODEL-DATA)"
    )


def _add_images(group: Any) -> None:
    group.add_argument(
        "--root",
        metavar="DIR",
        type=_path,
        help="where the files of mnist and fashion-mnist are (default: data; for "
        "fashion-mnist then also /usr/share/datasets/fashion-mnist)",
    )
    group.add_argument(
        "--download", action="store_true", help="fetch the files of mnist or fashion-mnist to DIR"
    )
    group.add_argument("--patch", metavar="N", type=_integer(1, 4096), help="vit: height and width "
                       "of a patch (default: 16)")  # fmt: skip
    group.add_argument("--resize", metavar="N", type=_integer(1, 4096), help="resize images to NxN "
                       "pixels (default: 224 for alexnet, vgg11 and nin, 96 for googlenet, resnets "
                       "and densenet, as in the book; others take them as they are)")  # fmt: skip


def _add_texts(group: Any) -> None:
    size, steps = _integer(1, 2**16), _integer(1, 10**6)
    group.add_argument("--hidden", metavar="N", type=size, help="units per layer (default: 256)")
    group.add_argument("--layers", metavar="N", type=_integer(1, 100), help="recurrent layers "
                       "(default: 1; seq2seq 2)")  # fmt: skip
    group.add_argument("--dropout", metavar="P", type=_share, help="between layers, and on "
                       "attention weights (default: 0; seq2seq 0.2)")  # fmt: skip
    group.add_argument("--heads", metavar="N", type=_integer(1, 1024), help="Transformers: heads "
                       "of each attention (default: 4)")  # fmt: skip
    group.add_argument("--ffn", metavar="N", type=size, help="transformer: features inside each "
                       "layer's network (default: 64)")  # fmt: skip
    group.add_argument("--num-steps", metavar="N", type=steps, help="tokens per window (default: "
                       "35), or per sentence, the rest being cut off (default: 12)")  # fmt: skip
    group.add_argument("--clip", metavar="X", type=_positive, help="largest norm of the gradient "
                       "(default: 1)")  # fmt: skip
    group.add_argument("--cell", metavar="NAME", choices=("rnn", "gru", "lstm"), help="char-lm: "
                       "rnn, gru or lstm (default: gru)")  # fmt: skip
    group.add_argument("--raw", action="store_true", help="char-lm: keep upper case, digits and "
                       "punctuation (default: only letters, in lower case)")  # fmt: skip
    group.add_argument("--attention", action="store_true", help="seq2seq: additive attention")
    group.add_argument("--bidirectional", action="store_true", help="seq2seq: the encoder reads "
                       "both ways")  # fmt: skip
    group.add_argument("--embed", metavar="N", type=size, help="seq2seq: features of a word "
                       "(default: 256)")  # fmt: skip
    group.add_argument("--min-freq", metavar="N", type=_integer(0, 10**6), help="seq2seq: rarer "
                       "words become <unk> (default: 2)")  # fmt: skip
    group.add_argument("--max-pairs", metavar="N", type=steps, help="seq2seq: read no more pairs "
                       "(default: all)")  # fmt: skip


def _add_generate(generate: argparse.ArgumentParser) -> None:
    generate.add_argument("folder", metavar="DIR", type=_path, help="as given to train --out")
    generate.add_argument("--prompt", metavar="TEXT", required=True, help="the text to continue, "
                          "or the sentence to translate")  # fmt: skip
    generate.add_argument("--length", metavar="N", type=_integer(1, 10**6), help="char-lm: "
                          "characters to add (default: 200)")  # fmt: skip
    generate.add_argument("--temperature", metavar="X", type=_from_zero, help="char-lm: 0 takes "
                          "the likeliest character, 1 draws by the model's own probabilities "
                          "(default: 0.8)")  # fmt: skip
    generate.add_argument("--top-k", metavar="N", type=_integer(1, 10**6), help="gpt: draw among "
                          "the N likeliest only")  # fmt: skip
    generate.add_argument("--top-p", metavar="P", type=_probability, help="gpt: draw among the "
                          "fewest likeliest that have the probability P together")  # fmt: skip
    generate.add_argument("--seed", metavar="N", type=_integer(0, 2**63 - 1), help="char-lm: of "
                          "the draws (default: another each time)")  # fmt: skip
    generate.add_argument("--top", metavar="N", type=_integer(1, 100), help="bert: show the N "
                          "likeliest words of each gap (default: 1)")  # fmt: skip
    generate.add_argument("--heatmaps", metavar="PNG", type=_path, help="draw the attention's "
                          "weights to this file; needs matplotlib")  # fmt: skip
    generate.add_argument("--beam", metavar="N", type=_integer(1, 1000), help="seq2seq: sentences "
                          "kept under way; 1 is greedy search (default: 4)")  # fmt: skip


def _train(given: dict[str, Any]) -> int:
    from .runner import BaseRun, UsageError

    try:
        run: BaseRun
        if given["model"] in TEXT_MODELS:
            from . import train_text

            run = train_text.make_run(given)
        elif given["model"] in TRANSFORMERS:
            from . import train_transformer

            run = train_transformer.make_run(given)
        else:
            from . import train

            run = train.make_run(given)
    except UsageError as error:
        print(f"grebe train: error: {error}", file=sys.stderr)
        return 2
    return run()


def _generate(given: dict[str, Any]) -> int:
    from .generate import generate
    from .runner import UsageError

    try:
        print(generate(**given))
    except UsageError as error:
        print(f"grebe generate: error: {error}", file=sys.stderr)
        return 2
    return 0


def _run_as_torch(script: str, arguments: list[str]) -> int:
    import runpy

    from . import as_torch  # noqa: F401  (its import does it)

    if not os.path.isfile(script):
        raise FileNotFoundError(f"run-as-torch: no such file: {script}")
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    runpy.run_path(script, run_name="__main__")
    return 0


def _info() -> int:
    import platform

    import numpy

    import grebe

    from . import _cpu

    levels = _cpu.levels()
    built = ", ".join(
        name if usable else f"{name} (not on this machine)" for name, usable in levels
    )
    forced = os.environ.get("GREBE_ISA")
    memory = _cpu.memory_stats()
    rows = [
        ("version", grebe.__version__),
        ("python", f"{platform.python_version()}, NumPy {numpy.__version__}"),
        ("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"),
        ("ISA level", _cpu.isa() + (f" (GREBE_ISA={forced})" if forced else "")),
        ("built levels", built),
        ("threads", str(_cpu.num_threads())),
        ("CUDA", _cuda()),
        ("memory", f"{_mib(memory['allocated'])} in use, {_mib(memory['cached'])} cached, "
                   f"{_mib(memory['peak'])} peak; {_machine_memory()}"),
    ]  # fmt: skip
    for name, value in rows:
        print(f"{name:<13} {value}")
    return 0


def _cuda() -> str:
    """Whether CUDA can be used, or why not."""
    from . import cuda
    from .backend import load_cuda

    missing = load_cuda()
    return f"not available: {missing}" if missing else cuda.get_device_name()


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _machine_memory() -> str:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return f"the machine has {pages * size / 2**30:,.1f} GiB"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (default: this process's); returns the exit code."""
    try:
        given = vars(parser().parse_args(arguments))
        command = given.pop("command")
        if command == "info":
            return _info()
        if command == "run-as-torch":
            return _run_as_torch(**given)
        return _train(given) if command == "train" else _generate(given)
    except KeyboardInterrupt:
        print("grebe: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # nobody reads our output any more, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, MemoryError) as error:
        print(f"grebe: error: {error or type(error).__name__}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
