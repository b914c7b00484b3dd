"""What a run tells while it goes on and when it ends: logs and pictures, the results, pushes to the Hub."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from benchmark.checkpoint import Progress, publish_files
from benchmark.evaluation import Evaluation
from benchmark.hub import Pusher, write_snapshot
from benchmark.model_card import model_card
from benchmark.models.image_processing import processor
from benchmark.models.modeling import SegmentationModel, parameter_counts
from benchmark.pictures import confusion_picture, panel, png, stack_panels
from benchmark.recipe import Recipe
from benchmark.results import (
    CONFUSION,
    RESULTS,
    describe_experiment,
    describe_machine,
    summarize,
    write_confusions,
    write_results,
)
from benchmark.tracking import Tracking
from data_scripts import PreparedDataset


class Reporter:
    """Every process has one, for some of what it tells is gathered; the main process writes.

    Args:
        progress: the run's own, read at each call.
        pusher: of the main process; None where nothing is pushed.
    """

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        folder: Path,
        datasets: Mapping[str, PreparedDataset],
        model: SegmentationModel,
        progress: Progress,
        pusher: Pusher | None = None,
    ):
        self.recipe, self.accelerator, self.folder, self.datasets = recipe, accelerator, folder, datasets
        self.config, self.counts, self.progress, self.pusher = model.config, parameter_counts(model), progress, pusher
        first = recipe.data.val[0]
        self.tracking = Tracking(
            accelerator,
            folder,
            start_step=progress.reported,
            steps=recipe.train.steps,
            recipe={key: value for key, value in recipe.identity().items() if not key.startswith("data.custom.")},
            recipe_text=recipe.to_yaml(),
            metric=f"{self._prefix(first)}/mean_iou",
        )

    def _prefix(self, name: str) -> str:
        return "val" if len(self.recipe.data.val) == 1 else f"val/{name}"

    def log_training(self, rates: Sequence[float]) -> None:
        """Record the steps since the last time, made with `rates` in the end."""
        progress = self.progress
        loss, seconds = sum(progress.losses) / len(progress.losses), progress.train_seconds - progress.logged_seconds
        speed = len(progress.losses) * self.recipe.train.global_batch_size / seconds
        values = {"train/loss": loss, "train/lr": rates[0], "speed/images_per_second": speed}
        if len(rates) > 1:
            values["train/encoder_lr"] = rates[1]
        self.tracking.log(values, progress.step)
        self.tracking.status(loss=f"{loss:.3f}", lr=f"{rates[0]:.1e}", images_per_second=f"{speed:.1f}")
        progress.losses, progress.logged_seconds = [], progress.train_seconds

    def log_evaluations(self, evaluations: Mapping[str, Evaluation]) -> None:
        """Record scores and pictures of each validation dataset."""
        for name, evaluation in evaluations.items():
            self._log_evaluation(self._prefix(name), evaluation, self.datasets[name])

    def _log_evaluation(self, prefix: str, evaluation: Evaluation, dataset: PreparedDataset) -> None:
        scores, step = evaluation.scores, self.progress.step
        values = {f"{prefix}/{key}": scores[key] for key in ("mean_iou", "pixel_accuracy")}
        self.tracking.log(values | {f"{prefix}/iou/{name}": iou for name, iou in scores["iou"].items()}, step)
        for sample in evaluation.samples:
            picture = panel(sample.image, sample.label, sample.prediction, dataset.classes, dataset.colors)
            self.tracking.picture(f"{prefix}/panel/{sample.index}", picture, step)
        picture = confusion_picture(evaluation.confusion(len(dataset.classes)), dataset.classes)
        self.tracking.picture(f"{prefix}/confusion", picture, step)

    def pushes(self, step: int) -> bool:
        """Whether the run is pushed after `step`; after the last one `finish` does it."""
        output, train = self.recipe.output, self.recipe.train
        return (
            bool(output.hub_model_id)
            and step < train.steps
            and step % (output.push_every or train.checkpoint_every) == 0
        )

    def push(
        self, evaluations: Mapping[str, Evaluation] | None, weights: dict[str, Tensor], *, last: bool = False
    ) -> None:
        """Push the run as it stands, with its whole `weights`; in the background but for the last time."""
        if self.pusher is None or (self.pusher.is_pushing() and not last):
            return
        if not last:  # training goes on beside the push
            weights = {name: weight.detach().to("cpu", copy=True) for name, weight in weights.items()}
        results = picture = None
        if evaluations:
            results = self._results(evaluations)
            panels = [
                panel(s.image, s.label, s.prediction, self.datasets[name].classes, self.datasets[name].colors)
                for name, evaluation in evaluations.items()
                for s in evaluation.samples
            ]
            picture = png(stack_panels(panels))
        name, step = self.recipe.output.hub_model_id, self.progress.step
        write = partial(
            write_snapshot,
            run_folder=self.folder,
            model=self._bare_model(),
            weights=weights,
            results=results,
            card=model_card(name, self.recipe.to_dict(), results, step=step),
            picture=picture,
        )
        self.pusher.finish(write) if last else self.pusher.push(step, write)

    def finish(self, evaluations: Mapping[str, Evaluation], weights: dict[str, Tensor]) -> dict:
        """Write the model, the confusion counts and, last, the results; push them; return the results."""
        self.close()
        results = self._results(evaluations)
        if self.accelerator.is_main_process:
            # A copy of the dict, which transformers empties while it writes.
            self._bare_model().save_pretrained(self.folder / "model", state_dict=dict(weights))
            processor(self.config).save_pretrained(self.folder / "model")
            publish_files(self.folder / "model")
            write_confusions(self.folder / CONFUSION, evaluations)
            write_results(self.folder / RESULTS, results)
            self.push(evaluations, weights, last=True)
        self.accelerator.wait_for_everyone()
        return results

    def close(self) -> None:
        self.tracking.close()

    def is_pushing(self) -> bool:
        return self.pusher is not None and self.pusher.is_pushing()

    def _bare_model(self) -> SegmentationModel:
        """A model without memory for its weights: FSDP makes another class of the one that is trained."""
        with torch.device("meta"):
            return SegmentationModel(self.config)

    def _results(self, evaluations: Mapping[str, Evaluation]) -> dict:
        """What results.json holds, of the run as it stands."""
        recipe, progress = self.recipe, self.progress
        fingerprints = {name: dataset.fingerprint for name, dataset in self.datasets.items()}
        images = progress.step * recipe.train.global_batch_size
        return {
            **summarize(evaluations, fingerprints),
            **describe_experiment(recipe.identity(), recipe.protocol(), recipe.output.setting),
            **describe_machine(self.accelerator),
            "dataset_fingerprint": fingerprints[recipe.data.train],
            "step": progress.step,
            "parameters": self.counts[0],
            "trainable_parameters": self.counts[1],
            "train_seconds": progress.train_seconds,
            "eval_seconds": progress.eval_seconds,
            "images_per_second": images / progress.train_seconds,
        }
