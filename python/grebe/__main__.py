"""The command line: `python -m grebe train ...` and `python -m grebe info`."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

MODELS = (
    "softmax-regression", "mlp", "lenet", "alexnet", "vgg11", "nin", "googlenet", "resnet18",
    "resnet34", "resnet50", "resnext50", "densenet",
)  # fmt: skip
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


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = Parser(prog="grebe", description="Deep learning on kernels that can be read.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    train = commands.add_parser(
        "train",
        help="train an image classifier and report its accuracy and speed",
        description="Train an image classifier; report loss, accuracy and samples per second.",
        epilog="DIR gets model.safetensors, result.json and, with matplotlib, curve.png. Ctrl-C "
        "keeps the last complete epoch.",
    )
    train.add_argument("model", metavar="MODEL", choices=MODELS, help=", ".join(MODELS))
    train.add_argument(
        "--data",
        metavar="NAME",
        type=_path,
        help="digits, mnist, fashion-mnist, or a folder with IDX files named as MNIST's (default: "
        "fashion-mnist if its files are found, else digits)",
    )
    train.add_argument(
        "--root",
        metavar="DIR",
        type=_path,
        default="data",
        help="where the files of mnist and fashion-mnist are (default: %(default)s; for "
        "fashion-mnist then also /usr/share/datasets/fashion-mnist)",
    )
    train.add_argument(
        "--download", action="store_true", help="fetch the files of mnist or fashion-mnist to DIR"
    )
    train.add_argument("--resize", metavar="N", type=_integer(1, 4096), help="resize images to NxN "
                       "pixels (default: 224 for alexnet, vgg11 and nin, 96 for googlenet, resnets "
                       "and densenet, as in the book; others take them as they are)")  # fmt: skip
    train.add_argument("--epochs", metavar="N", type=_integer(1, 10**6), help="default: 10, or 30 "
                       "with less than 10,000 images")  # fmt: skip
    train.add_argument("--batch-size", metavar="N", type=_integer(1, 10**6), help="default: 256, "
                       "or 32 with less than 10,000 images")  # fmt: skip
    train.add_argument("--lr", metavar="X", type=_positive, help="learning rate (default: the "
                       "model's and optimizer's)")  # fmt: skip
    train.add_argument(
        "--optimizer",
        metavar="NAME",
        choices=OPTIMIZERS,
        help=f"{', '.join(OPTIMIZERS)} (default: the model's)",
    )
    train.add_argument("--threads", metavar="N", type=_integer(1, 1024), help="default: all cores")
    train.add_argument("--seed", metavar="N", type=_integer(0, 2**63 - 1), default=0,
                       help="of initial weights and order (default: %(default)s)")  # fmt: skip
    train.add_argument(
        "--out", metavar="DIR", type=_path, help="for the results (default: runs/MODEL-DATA)"
    )

    commands.add_parser(
        "info",
        help="tell version, instruction set, threads, CUDA and memory",
        description="Tell what this installation of grebe is and what it runs on.",
    )
    return top


def _train(options: argparse.Namespace) -> int:
    from . import train

    fields = {key: value for key, value in vars(options).items() if key != "command"}
    try:
        run = train.Run(train.Config(**fields))
    except train.UsageError as error:
        print(f"grebe train: error: {error}", file=sys.stderr)
        return 2
    return run()


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
    import importlib.util

    if importlib.util.find_spec("grebe._cuda") is None:
        return "not available: this build has no CUDA kernels"
    return "the module _cuda is installed"


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _machine_memory() -> str:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return f"the machine has {pages * size / 2**30:,.1f} GiB"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (default: this process's); returns the exit code."""
    try:
        options = parser().parse_args(arguments)
        return _info() if options.command == "info" else _train(options)
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
