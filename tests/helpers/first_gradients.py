"""Train as train.py does, and save the gradients with which rank 0 makes its first optimizer step.

Launched by a test: python tests/helpers/first_gradients.py FILE --recipe ...
"""

import sys

import torch
from accelerate import PartialState
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmark.command_line import CommandParser
from benchmark.training import train

file = sys.argv.pop(1)


def save(optimizer, *_) -> None:
    if PartialState().is_main_process:
        torch.save([p.grad.clone() for group in optimizer.param_groups for p in group["params"]], file)
    hook.remove()


hook = register_optimizer_step_pre_hook(save)
parser = CommandParser()
parser.add_recipe()
train(parser.parse_recipe()[1])
