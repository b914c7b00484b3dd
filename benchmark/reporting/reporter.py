"""What a run reports while it trains and when it ends: logs and pictures, the results, pushes to the Hub."""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, Protocol

import yaml
from accelerate import Accelerator
from torch import Tensor

from benchmark.evaluation.evaluator import flatten_scores
from benchmark.evaluation.loop import Evaluation
from benchmark.models.configuration import SegmentationConfig
from benchmark.models.heads import HEADS
from benchmark.reporting.hub import Pusher, write_snapshot
from benchmark.reporting.model_card import model_card
from benchmark.reporting.model_folder import save_model
from benchmark.reporting.pictures import confusion_picture, panel, png, sample_files, stack_panels
from benchmark.reporting.results import build_results, write_confusions, write_results
from benchmark.reporting.run_folder import CONFUSION, MODEL, RESULTS, SAMPLES, RunFolder, write_durably
from benchmark.reporting.tracking import Tracking
from data_scripts.preparation import PreparedDataset

GRAD_NORM = "grad_norm"  # among a step's losses: the norm of its gradients before they were clipped


class Progress(Protocol):
    """As much of `benchmark.training.checkpoint.Progress` as is reported."""

    step: int
    logged_step: int
    losses: list[dict[str, float]]
    train_seconds: float
    logged_seconds: float
    eval_seconds: float


class Reporter:
    """Every process has one, because some of what it reports is gathered; the main process writes.

    Args:
        config: the model's own, which it changes while it trains.
        counts: the model's parameters, and how many are trained.
        progress: the run's own, read at each call.
        recipe: as it may be published, see `benchmark.recipe.identity.public`.
        settings: keys of the recipe and their values, which trackers show, see `benchmark.recipe.identity.settings`.
        experiment: returns what `results.describe_experiment` does; called when results are built, because it counts
            the model's arithmetic, for which training need not wait.
        pusher: of the main process; None where nothing is pushed.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: RunFolder,
        datasets: Mapping[str, PreparedDataset],
        config: SegmentationConfig,
        counts: tuple[int, int],
        progress: Progress,
        *,
        recipe: dict[str, Any],
        settings: Mapping[str, Any],
        experiment: Callable[[], Mapping[str, Any]],
        pusher: Pusher | None = None,
    ):
        self.accelerator, self.folder, self.datasets, self.progress = accelerator, folder, datasets, progress
        self.config, self.counts = config, counts
        self.recipe, self.experiment, self.pusher = recipe, experiment, pusher
        self.steps, self.global_batch_size = recipe["train"]["steps"], recipe["train"]["global_batch_size"]
        self.tracking = Tracking(
            accelerator,
            folder.path,
            start_step=progress.logged_step,
            steps=self.steps,
            recipe=settings,
            recipe_text=yaml.safe_dump(recipe, sort_keys=False),
            metric=f"{self._prefix(recipe['data']['val'][0])}/mean_iou",
        )

    def _prefix(self, name: str) -> str:
        return "val" if len(self.recipe["data"]["val"]) == 1 else f"val/{name}"

    def log_training(self, rates: Sequence[float]) -> None:
        """Record the steps since the last time, of which the last one was made with `rates`."""
        progress = self.progress
        count, seconds = len(progress.losses), progress.train_seconds - progress.logged_seconds
        # Steps that an older version made have no parts.
        names = [name for name in progress.losses[-1] if all(name in losses for losses in progress.losses)]
        means = {name: sum(losses[name] for losses in progress.losses) / count for name in names}
        speed = count * self.global_batch_size / seconds
        tags = {"loss": "train/loss", GRAD_NORM: f"train/{GRAD_NORM}"}
        values: dict[str, float | None] = {tags.get(name, f"train/loss/{name}"): mean for name, mean in means.items()}
        if not math.isfinite(means.get(GRAD_NORM, 0.0)):  # fp16 leaves out such a step, and lowers its scale
            values[tags[GRAD_NORM]] = None
        values |= {"train/lr": rates[0], "speed/images_per_second": speed}
        if len(rates) > 1:
            values["train/encoder_lr"] = rates[1]
        self.tracking.log(values, progress.step)
        self.tracking.status(loss=f"{means['loss']:.3f}", lr=f"{rates[0]:.1e}", images_per_second=f"{speed:.1f}")
        progress.losses, progress.logged_seconds = [], progress.train_seconds

    def log_evaluations(self, evaluations: Mapping[str, Evaluation]) -> None:
        """Record scores and pictures of each validation dataset, on the main process, which alone draws them."""
        for name, evaluation in evaluations.items() if self.accelerator.is_main_process else ():
            prefix, dataset, step = self._prefix(name), self.datasets[name], self.progress.step
            values = {f"{prefix}/{key}": value for key, value in flatten_scores(evaluation.scores)}
            self.tracking.log(values, step)
            for sample, picture in zip(evaluation.samples, self._panels(name, evaluation), strict=True):
                self.tracking.picture(f"{prefix}/panel/{sample.index}", picture, step)
            picture = confusion_picture(evaluation.confusion(len(dataset.classes)), dataset.classes)
            self.tracking.picture(f"{prefix}/confusion", picture, step)

    def _panels(self, name: str, evaluation: Evaluation) -> list:
        dataset = self.datasets[name]
        return [panel(s.image, s.label, s.prediction, dataset.classes, dataset.colors) for s in evaluation.samples]

    def push(
        self,
        evaluations: Mapping[str, Evaluation] | None,
        weights: dict[str, Tensor],
        *,
        last: dict[str, Any] | None = None,
    ) -> None:
        """Push the run as it is, with its whole `weights`, in the background.

        Args:
            last: the finished run's results; it is pushed before this returns.
        """
        if self.pusher is None or (self.pusher.is_pushing() and not last):
            return
        if not last:  # training continues beside the push
            weights = {name: weight.detach().to("cpu", copy=True) for name, weight in weights.items()}
        results = picture = None
        if evaluations:
            results = last or self._results(evaluations)
            panels = [picture for name, evaluation in evaluations.items() for picture in self._panels(name, evaluation)]
            picture = png(stack_panels(panels))
        step, head = self.progress.step, HEADS[self.config.head].title
        write = partial(
            write_snapshot,
            run_folder=self.folder.path,
            config=deepcopy(self.config),  # a head that anneals changes it while the push runs
            weights=weights,
            recipe_yaml=yaml.safe_dump(self.recipe, sort_keys=False),
            results=results,
            card=model_card(self.pusher.repo_id, self.recipe, results, step=step, head=head),
            picture=picture,
        )
        self.pusher.finish(write) if last else self.pusher.push(step, write)

    def finish(self, evaluations: Mapping[str, Evaluation], weights: dict[str, Tensor]) -> dict[str, Any]:
        """Write the model, the confusion counts and, last, the results; push them; return the results."""
        self.close()
        results = self._results(evaluations)
        if self.accelerator.is_main_process:
            save_model(self.folder / MODEL, self.config, weights)
            self._write_samples(evaluations)
            write_confusions(self.folder / CONFUSION, evaluations)
            write_results(self.folder / RESULTS, results)
            self.push(evaluations, weights, last=results)
        self.accelerator.wait_for_everyone()
        return results

    def _write_samples(self, evaluations: Mapping[str, Evaluation]) -> None:
        """Write a few images, labels and predictions, which reports show side by side."""
        (self.folder / SAMPLES).mkdir(exist_ok=True)
        for name, evaluation in evaluations.items():
            for s in evaluation.samples:
                key = f"{name}-{s.index:05d}"
                files = sample_files(key, s.image, s.label, s.prediction, self.datasets[name].colors)
                for file, content in files.items():
                    write_durably(self.folder / SAMPLES / file, content)

    def close(self) -> None:
        self.tracking.close()

    def is_pushing(self) -> bool:
        return self.pusher is not None and self.pusher.is_pushing()

    def _results(self, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
        """What results.json holds, of the run as it is."""
        progress = self.progress
        training = {
            "dataset_fingerprint": self.datasets[self.recipe["data"]["train"]].fingerprint,
            "step": progress.step,
            "parameters": self.counts[0],
            "trainable_parameters": self.counts[1],
            "train_seconds": progress.train_seconds,
            "eval_seconds": progress.eval_seconds,
            "images_per_second": progress.step * self.global_batch_size / progress.train_seconds,
        }
        return build_results(evaluations, self.datasets, self.experiment(), training, self.accelerator)
