"""The loop: a recipe in, a run folder out."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from benchmark.assembly import (
    build_model,
    evaluate_datasets,
    prepare_datasets,
    processes_in_words,
    settle_gradient_buckets,
    start_accelerator,
)
from benchmark.checkpoint import (
    CHECKPOINTS,
    Progress,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    write_atomically,
)
from benchmark.color_jitter import color_jitter
from benchmark.data import training_loader
from benchmark.errors import UserError
from benchmark.evaluation import Evaluation, format_table
from benchmark.hub import Pusher
from benchmark.losses import Losses
from benchmark.micro_batch import memory_for, memory_for_step, settle_micro_batch
from benchmark.models.encoder import encoder_defaults
from benchmark.models.modeling import SegmentationModel
from benchmark.models.windows import normalize
from benchmark.optim import build_optimizer, set_learning_rates
from benchmark.preemption import MARKER, Preempted, Preemption
from benchmark.recipe import Recipe
from benchmark.reporting import Reporter
from benchmark.results import RECIPE, check_run_folder
from data_scripts import PreparedDataset

PANELS = 4  # validation images that are drawn at each evaluation


def train(recipe: Recipe, *, resume: str = "auto") -> dict:
    """Train and evaluate what `recipe` says, and return what results.json holds.

    Args:
        resume: "auto" continues the run that the run folder holds, "never" asks for an empty one.
    """
    accelerator = start_accelerator(recipe)
    folder = Path(recipe.output.dir)
    if finished := check_run_folder(folder, recipe.identity(), resume=resume):
        accelerator.print(f"{format_table(finished)}\n{folder} was finished before; nothing was changed.")
        return finished
    encoder_defaults(recipe.model.encoder)  # a name that timm does not know ends the run before a dataset is built
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / RECIPE, recipe.to_yaml().encode())
    pusher = None
    if recipe.output.hub_model_id and accelerator.is_main_process:
        pusher = Pusher(recipe.output.hub_model_id, private=recipe.output.hub_private, folder=folder)
    results = _train(recipe, accelerator, folder, pusher)
    accelerator.print(f"{format_table(results)}\nThe model, its results and its logs are in {folder}.")
    accelerator.end_training()
    return results


def _train(recipe: Recipe, accelerator: Accelerator, folder: Path, pusher: Pusher | None) -> dict:
    """Prepare and go; apart from `train`, so that the groups of `Preemption` go before accelerate ends its own."""
    with Preemption(accelerator, folder / MARKER) as preemption:
        datasets = prepare_datasets(recipe, accelerator)
        model = build_model(recipe, datasets[recipe.data.train])
        return Run(recipe, accelerator, folder, datasets, model, preemption, pusher).train()


class Run:
    """A model, its optimizer and its data, on the way from the last checkpoint to the last step."""

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        folder: Path,
        datasets: dict[str, PreparedDataset],
        model: SegmentationModel,
        preemption: Preemption,
        pusher: Pusher | None = None,
    ):
        self.recipe, self.accelerator, self.folder, self.datasets = recipe, accelerator, folder, datasets
        self.preemption = preemption
        self.config = model.config
        model.train().to(accelerator.device)
        self.micro_batch_size = settle_micro_batch(recipe, model, accelerator)
        accelerator.print(processes_in_words(recipe, accelerator, self.micro_batch_size))
        optim = recipe.optim
        optimizer = build_optimizer(
            model, lr=optim.lr, encoder_lr_multiplier=optim.encoder_lr_multiplier, weight_decay=optim.weight_decay
        )
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.saved_step = 0
        self.progress = self._resume()
        samples = datasets[recipe.data.train].splits.get("train")
        self.losses = Losses(accelerator, samples, recipe.train.global_batch_size, recipe.seed)
        self.reporter = Reporter(recipe, accelerator, folder, datasets, model, self.progress, pusher)

    def train(self) -> dict:
        """Go on to the last step; return the results."""
        try:
            self.preemption.check()
            settle_gradient_buckets(self.model, self.config, self.accelerator)
            evaluations = self._go_on() or self._evaluate()  # no step is left where all but the results was written
        except Preempted:
            self._save()
            self.reporter.close()
            self.preemption.leave_marker(self.progress.step)
            if self.reporter.is_pushing():
                os._exit(os.EX_TEMPFAIL)  # Python would wait for the threads of the push
            raise
        return self.reporter.finish(evaluations, self.accelerator.get_state_dict(self.model))

    def _go_on(self) -> dict[str, Evaluation] | None:
        """Step, evaluate, log and save up to the last step; returns its evaluation."""
        train, progress, evaluations = self.recipe.train, self.progress, None
        batches = iter(self._loader())
        for step in range(progress.reported + 1, train.steps + 1):
            logs, evaluates, saves = (
                step % every == 0 or step == train.steps
                for every in (train.log_every, train.eval_every, train.checkpoint_every)
            )
            if step > progress.step:  # else the run was asked to end in this step's evaluation
                with progress.timed("train_seconds"):
                    self._step(step, batches)
                    if logs or saves:
                        progress.losses += self.losses.collect(step)
            evaluations = self._evaluate() if evaluates else None
            if logs:
                self.reporter.log_training(self._set_rates(step))
            if evaluates:
                self.reporter.log_evaluations(evaluations)
            progress.reported = step
            if saves:
                self._save()
            if self.reporter.pushes(step):
                self.reporter.push(evaluations, self.accelerator.get_state_dict(self.model))
            self.preemption.check()
        return evaluations

    def _step(self, step: int, batches: Iterator[dict[str, Tensor]]) -> None:
        """One optimizer step."""
        accelerator, losses = self.accelerator, []
        self._set_rates(step)
        with memory_for_step(self.recipe, accelerator.num_processes, self.micro_batch_size):
            for _ in range(accelerator.gradient_accumulation_steps):
                inputs = self._inputs(next(batches))
                with accelerator.accumulate(self.model):
                    with accelerator.autocast():
                        loss = self.model(**inputs).loss
                    accelerator.backward(loss)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                losses.append(loss.detach())
        self.losses.add(losses)
        self.progress.step = step
        self.reporter.tracking.advance()

    def _set_rates(self, step: int) -> list[float]:
        """The learning rates of a step, which is counted from 1."""
        train, power = self.recipe.train, self.recipe.optim.poly_power
        return set_learning_rates(self.optimizer, step=step - 1, steps=train.steps, power=power)

    def _inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """From uint8 on the CPU to what the model takes, jittered and normalised on the device."""
        batch = {key: value.to(self.accelerator.device, non_blocking=True) for key, value in batch.items()}
        pixels = color_jitter(batch["pixel_values"], batch["thumbnails"], batch["jitter"], batch["sizes"])
        return {
            "pixel_values": normalize(pixels, self.config.image_mean, self.config.image_std),
            "labels": batch["labels"].long(),
            "positions": batch["positions"],
        }

    def _loader(self) -> torch.utils.data.DataLoader:
        recipe, accelerator = self.recipe, self.accelerator
        return training_loader(
            self.datasets[recipe.data.train].splits["train"],
            crop_size=recipe.data.crop,
            seed=recipe.seed,
            steps=recipe.train.steps,
            start_step=self.progress.step,
            global_batch_size=recipe.train.global_batch_size,
            micro_batch_size=self.micro_batch_size,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            num_workers=recipe.data.num_workers,
        )

    def _evaluate(self) -> dict[str, Evaluation]:
        model, size = self.accelerator.unwrap_model(self.model), self.recipe.train.eval_batch_size
        advice = f"set train.eval_batch_size to {size // 2}" if size > 1 else None
        with self.progress.timed("eval_seconds"), memory_for(f"An evaluation of {size} windows at once", advice):
            return evaluate_datasets(
                self.recipe, model, self.datasets, self.accelerator, PANELS, self.preemption.any_working
            )

    def _save(self) -> None:
        accelerator, progress = self.accelerator, self.progress
        if progress.step == self.saved_step:
            return
        progress.losses += self.losses.collect(progress.step)
        progress.scaler = accelerator.scaler.state_dict() if accelerator.scaler else {}
        self.reporter.tracking.flush()
        save_checkpoint(
            self.folder / CHECKPOINTS,
            accelerator,
            self.model,
            self.optimizer.optimizer,
            progress,
            recipe=self.recipe.identity(),
            keep=self.recipe.train.keep_checkpoints,
        )
        self.saved_step = progress.step

    def _resume(self) -> Progress:
        checkpoint = find_checkpoint(self.folder / CHECKPOINTS, self.accelerator, self.recipe.identity())
        digest = self.datasets[self.recipe.data.train].fingerprint["digest"]
        if checkpoint is None:
            return Progress(digest=digest)
        progress = load_checkpoint(checkpoint, self.accelerator, self.model, self.optimizer.optimizer)
        if progress.digest != digest:
            raise UserError(
                f"{self.folder} was trained on other files of {self.recipe.data.train} than data.root holds now: "
                "put the former ones back or name another output.dir."
            )
        if progress.scaler:
            self.accelerator.scaler.load_state_dict(progress.scaler)
        self.saved_step = progress.step
        self.accelerator.print(f"Going on after step {progress.step} of {self.folder}.")
        return progress
