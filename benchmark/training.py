"""The loop: a recipe in, a run folder out."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from benchmark.assembly import build_model, evaluate_datasets, prepare_datasets, share_of_step, start_accelerator
from benchmark.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from benchmark.color_jitter import color_jitter
from benchmark.data import training_loader
from benchmark.errors import UserError
from benchmark.evaluation import Evaluation, format_table
from benchmark.models.encoder import encoder_defaults
from benchmark.models.image_processing import processor
from benchmark.models.modeling import SegmentationModel, parameter_counts
from benchmark.models.windows import normalize
from benchmark.optim import build_optimizer, set_learning_rates
from benchmark.recipe import Recipe
from benchmark.results import (
    CONFUSION,
    RECIPE,
    RESULTS,
    check_run_folder,
    describe_experiment,
    describe_machine,
    summarize,
    write_confusions,
    write_results,
)
from benchmark.tracking import Tracking, panel
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
    datasets = prepare_datasets(recipe, accelerator)
    model = build_model(recipe, datasets[recipe.data.train])
    results = Run(recipe, accelerator, folder, datasets, model).train()
    accelerator.print(f"{format_table(results)}\nThe model, its results and its logs are in {folder}.")
    accelerator.end_training()
    return results


@dataclass
class Progress:
    """What a run knows besides weights and moments: saved with them, as JSON."""

    step: int = 0  # optimizer steps done
    losses: list[float] = field(default_factory=list)  # of the steps since the last line of metrics
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    digest: str = ""  # of the training data
    scaler: dict = field(default_factory=dict)  # of fp16's gradients

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the seconds that the block takes to `what`."""
        start = time.perf_counter()
        yield
        setattr(self, what, getattr(self, what) + time.perf_counter() - start)


class Run:
    """A model, its optimizer and its data, on the way from the last checkpoint to the last step."""

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        folder: Path,
        datasets: dict[str, PreparedDataset],
        model: SegmentationModel,
    ):
        self.recipe, self.accelerator, self.folder, self.datasets = recipe, accelerator, folder, datasets
        self.config, self.counts = model.config, parameter_counts(model)
        optim = recipe.optim
        optimizer = build_optimizer(
            model, lr=optim.lr, encoder_lr_multiplier=optim.encoder_lr_multiplier, weight_decay=optim.weight_decay
        )
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.progress = self._resume()
        self.losses_on_device: list[Tensor] = []
        self.logged_seconds = self.progress.train_seconds
        self.tracking = Tracking(accelerator, folder, start_step=self.progress.step, steps=recipe.train.steps)

    def train(self) -> dict:
        """Go on to the last step; return the results."""
        recipe, progress = self.recipe, self.progress
        batches = iter(self._loader())
        self.model.train()
        self._settle_gradient_buckets()
        evaluations = None
        for step in range(progress.step + 1, recipe.train.steps + 1):
            logs, evaluates, saves = (
                step % every == 0 or step == recipe.train.steps
                for every in (recipe.train.log_every, recipe.train.eval_every, recipe.train.checkpoint_every)
            )
            with progress.timed("train_seconds"):
                rates = self._step(step, batches)
                progress.step = step
                losses = self._collect_losses() if logs or saves else []
            if logs:
                self._log(losses, rates)
            if evaluates:
                with progress.timed("eval_seconds"):
                    evaluations = self._evaluate()
            if saves:
                self._save()
        if evaluations is None:  # the run was cut off after its last checkpoint
            evaluations = self._evaluate(log=False)
        self.tracking.close()
        return self._finish(evaluations)

    def _step(self, step: int, batches: Iterator[dict[str, Tensor]]) -> list[float]:
        """One optimizer step; returns the learning rates it was made with."""
        recipe, accelerator = self.recipe, self.accelerator
        rates = set_learning_rates(
            self.optimizer, step=step - 1, steps=recipe.train.steps, power=recipe.optim.poly_power
        )
        losses = []
        for _ in range(accelerator.gradient_accumulation_steps):
            inputs = self._inputs(next(batches))
            with accelerator.accumulate(self.model):
                loss = self.model(**inputs).loss
                accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach())
        # Every micro batch holds as many images: the mean of means is the mean over the step's images.
        self.losses_on_device.append(torch.stack(losses).mean())
        self.tracking.advance()
        return rates

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
        micro, _ = share_of_step(recipe, accelerator.num_processes)
        return training_loader(
            self.datasets[recipe.data.train].splits["train"],
            crop_size=recipe.data.crop,
            seed=recipe.seed,
            steps=recipe.train.steps,
            start_step=self.progress.step,
            global_batch_size=recipe.train.global_batch_size,
            micro_batch_size=micro,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            num_workers=recipe.data.num_workers,
        )

    def _settle_gradient_buckets(self) -> None:
        """One backward pass of a loss of zero, whose gradients are thrown away.

        DDP sums gradients by buckets, and orders them anew after its first backward pass: without this, the first
        step after a resume would sum in another order than the same step of a run that was not interrupted.
        """
        if self.accelerator.num_processes == 1:
            return
        device, (height, width) = self.accelerator.device, self.config.crop_size
        labels = torch.zeros(1, height, width, dtype=torch.long, device=device)
        pixel_values = torch.zeros(1, 3, height, width, device=device)
        outputs = self.model(pixel_values=pixel_values, labels=labels, positions=labels[:, 0, 0])
        self.accelerator.backward(outputs.loss * 0)
        self.optimizer.zero_grad()

    def _collect_losses(self) -> list[float]:
        """The losses of the steps since the last line of metrics, each a mean over all processes.

        They stay on the device until here, so that a step does not wait for the host; and each is averaged over the
        processes before it is averaged over steps, so that a line does not depend on when they were collected.
        """
        if self.losses_on_device:
            losses = self.accelerator.gather(torch.stack(self.losses_on_device)).view(-1, len(self.losses_on_device))
            self.progress.losses += losses.cpu().double().mean(dim=0).tolist()
            self.losses_on_device.clear()
        first = self.progress.step - len(self.progress.losses) + 1
        for step, loss in enumerate(self.progress.losses, start=first):
            if not abs(loss) < float("inf"):
                raise UserError(f"The loss of step {step} is {loss}: lower optim.lr or take train.precision fp32.")
        return self.progress.losses

    def _log(self, losses: Sequence[float], rates: Sequence[float]) -> None:
        loss, seconds = sum(losses) / len(losses), self.progress.train_seconds - self.logged_seconds
        speed = len(losses) * self.recipe.train.global_batch_size / seconds
        values = {"train/loss": loss, "train/lr": rates[0], "speed/images_per_second": speed}
        if len(rates) > 1:
            values["train/encoder_lr"] = rates[1]
        self.tracking.log(values, self.progress.step)
        self.tracking.status(loss=f"{loss:.3f}", lr=f"{rates[0]:.1e}", images_per_second=f"{speed:.1f}")
        self.progress.losses, self.logged_seconds = [], self.progress.train_seconds

    def _evaluate(self, log: bool = True) -> dict[str, Evaluation]:
        model = self.accelerator.unwrap_model(self.model)
        evaluations = evaluate_datasets(self.recipe, model, self.datasets, self.accelerator, num_samples=PANELS)
        for name, evaluation in evaluations.items() if log else ():
            prefix = "val" if len(evaluations) == 1 else f"val/{name}"
            self._log_evaluation(prefix, evaluation, self.datasets[name])
        return evaluations

    def _log_evaluation(self, prefix: str, evaluation: Evaluation, dataset: PreparedDataset) -> None:
        scores, step = evaluation.scores, self.progress.step
        values = {f"{prefix}/{key}": scores[key] for key in ("mean_iou", "pixel_accuracy")}
        self.tracking.log(values | {f"{prefix}/iou/{name}": iou for name, iou in scores["iou"].items()}, step)
        for sample in evaluation.samples:
            picture = panel(sample.image, sample.label, sample.prediction, dataset.classes, dataset.colors)
            self.tracking.picture(f"{prefix}/panel/{sample.index}", picture, step)

    def _save(self) -> None:
        scaler = self.accelerator.scaler
        self.progress.scaler = scaler.state_dict() if scaler else {}
        self.tracking.flush()
        save_checkpoint(
            self.folder / "checkpoints",
            self.progress.step,
            self.model,
            self.optimizer.optimizer,
            asdict(self.progress),
            keep=self.recipe.train.keep_checkpoints,
            main=self.accelerator.is_main_process,
        )

    def _resume(self) -> Progress:
        state = load_checkpoint(self.folder / "checkpoints", self.model, self.optimizer.optimizer)
        digest = self.datasets[self.recipe.data.train].fingerprint["digest"]
        if state is None:
            return Progress(digest=digest)
        progress = Progress(**state)
        if progress.digest != digest:
            raise UserError(
                f"{self.folder} was trained on other files of {self.recipe.data.train} than data.root holds now: "
                "put the former ones back or name another output.dir."
            )
        if progress.scaler:
            self.accelerator.scaler.load_state_dict(progress.scaler)
        self.accelerator.print(f"Going on after step {progress.step} of {self.folder}.")
        return progress

    def _finish(self, evaluations: dict[str, Evaluation]) -> dict:
        """Write the model, the confusion counts and, last, the results."""
        accelerator, recipe = self.accelerator, self.recipe
        fingerprints = {name: dataset.fingerprint for name, dataset in self.datasets.items()}
        weights = accelerator.get_state_dict(self.model)
        model = accelerator.unwrap_model(self.model)
        images = recipe.train.steps * recipe.train.global_batch_size
        results = {
            **summarize(evaluations, fingerprints),
            **describe_experiment(recipe.identity(), recipe.protocol(), recipe.output.setting),
            **describe_machine(accelerator),
            "dataset_fingerprint": fingerprints[recipe.data.train],
            "step": self.progress.step,
            "parameters": self.counts[0],
            "trainable_parameters": self.counts[1],
            "train_seconds": self.progress.train_seconds,
            "eval_seconds": self.progress.eval_seconds,
            "images_per_second": images / self.progress.train_seconds,
        }
        if accelerator.is_main_process:
            model.save_pretrained(self.folder / "model", state_dict=weights)
            processor(self.config).save_pretrained(self.folder / "model")
            write_confusions(self.folder / CONFUSION, evaluations)
            write_results(self.folder / RESULTS, results)
        accelerator.wait_for_everyone()
        return results
