"""`python -m benchmark COMMAND`: what is done besides training."""

import importlib
import sys

from benchmark.errors import UserError, exit_with_one_sentence

COMMANDS = {
    "prepare": "build the datasets of a recipe, and say what is in them",
    "evaluate": "score a trained model on a dataset",
    "sweep": "train what is missing of a study: settings x encoders x seeds",
    "report": "rank what was trained, with uncertainty, on one page",
    "predict": "label images with a trained model",
    "export": "write a trained model as an ONNX file, or as a Space that shows it",
    "push": "publish a finished run on the Hub",
    "encoders": "list the encoders that have a recipe, or that timm has",
    "throughput": "measure how fast this machine loads, trains, or computes a loss",
}


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
        print("\n".join(["usage: python -m benchmark COMMAND [--help]", "", *lines]))
        return
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(f"There is no command '{name}': take one of {', '.join(COMMANDS)}.")
    importlib.import_module(f"benchmark.commands.{name}").main(rest)


if __name__ == "__main__":
    with exit_with_one_sentence():
        main(sys.argv[1:])
