"""The loop: a recipe in, a run folder out."""

import json
import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from benchmark.data.loaders import copied_ahead, training_loader
from benchmark.errors import UserError, as_sentence, report_error
from benchmark.evaluation.loop import Evaluation
from benchmark.recipe.identity import identity, identity_hash
from benchmark.recipe.schema import Recipe
from benchmark.reporting.model_folder import save_model
from benchmark.reporting.reporter import Reporter
from benchmark.reporting.results import score_table
from benchmark.reporting.run_folder import BEST, CHECKPOINTS, CHOSEN, PREEMPTED, RunFolder, write_atomically
from benchmark.training import build
from benchmark.training.checkpoint import (
    Checkpoint,
    Progress,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from benchmark.training.datasets import prepare_datasets
from benchmark.training.init_from import fetch_weights
from benchmark.training.launch import describe_processes, num_workers, on_main_process, start_processes
from benchmark.training.losses import Losses
from benchmark.training.memory import explain_out_of_memory, plan_steps, plan_without_trial
from benchmark.training.preemption import Preempted, Preemption
from benchmark.training.step import Step, is_due
from data_scripts.archive import MissingArchive
from data_scripts.counts import CONTENT
from data_scripts.preparation import PreparedDataset
from data_scripts.report import format_report

PANELS = 4  # validation images that are drawn at each evaluation


def train(recipe: Recipe, *, resume: str = "auto") -> dict:
    """Train and evaluate what `recipe` says, and return what results.json holds.

    Args:
        resume: "auto" continues the run that the run folder holds, "never" wants an empty one.
    """
    plan_without_trial(  # which stops where the processes do not divide the batch
        recipe.train.global_batch_size, int(os.environ.get("WORLD_SIZE", 1)), recipe.train.micro_batch_size
    )
    accelerator = start_processes(recipe)
    folder = RunFolder(Path(str(recipe.output.dir)), identity(recipe))
    if finished := folder.finished_results(resume):
        try:
            check_data(str(folder), finished, recipe.data.train, prepare_datasets(recipe, accelerator))
        except MissingArchive as error:
            accelerator.print(f"The data of {folder} could not be compared: {error}")
        accelerator.print(f"{score_table(finished)}\n{folder} was finished before; nothing was changed.")
        return finished
    counts = build.check_model(recipe)
    if not list_checkpoints(folder / CHECKPOINTS):
        fetch_weights(recipe)  # before datasets are built, which may take an hour
    pusher = build.build_pusher(recipe, accelerator, folder)
    with closing(folder), Preemption(accelerator, folder / PREEMPTED) as preemption:
        datasets = prepare_datasets(recipe, accelerator)
        say = folder.say if accelerator.is_main_process else lambda text: None
        say("\n\n".join(f"{name}\n{format_report(dataset)}" for name, dataset in datasets.items()))
        saved = list_checkpoints(folder / CHECKPOINTS)
        checkpoint = find_checkpoint(folder / CHECKPOINTS, accelerator, identity_hash(recipe))
        model, origins = build.build_model(recipe, datasets[recipe.data.train], load_weights=checkpoint is None)
        model.train().to(accelerator.device)
        on_main_process(accelerator, lambda: claim(recipe, resume, folder, saved))

        plan = plan_steps(recipe.train.global_batch_size, recipe.train.micro_batch_size, model, accelerator)
        workers = num_workers(recipe.data.num_workers, accelerator.device)
        say("\n".join([*origins, describe_processes(accelerator, plan, recipe.train.precision, workers)]))
        step = build.build_step(recipe, model, plan, accelerator)
        progress = load_progress(checkpoint, step, recipe.data.train, datasets, folder)
        del checkpoint  # which holds all weights and moments
        reporter = build.build_reporter(recipe, accelerator, folder, datasets, step.config, counts, progress, pusher)
        losses = Losses(accelerator, datasets[recipe.data.train].splits["train"], plan, recipe.seed)
        try:
            evaluations = run_steps(recipe, step, losses, progress, datasets, folder, reporter, preemption)
        except Preempted:
            save(recipe, step, losses, progress, folder, reporter)
            preemption.leave_marker(progress.step)
            end_early(reporter, Preempted())
            raise
        except Exception as error:
            if accelerator.is_main_process and folder.path.is_dir():
                folder.log(f"error: {as_sentence(error) or error}")
            end_early(reporter, error)
            raise
        results = reporter.finish(evaluations, step.saved_weights())
        say(f"{score_table(results)}\nThe model, its results and its logs are in {folder}.")
    accelerator.end_training()
    return results


def claim(recipe: Recipe, resume: str, folder: RunFolder, saved: list[Path]) -> None:
    """Make the run folder this process's own, if it still has the checkpoints `saved`.

    Raises:
        UserError: another process owns the folder, or has trained on in it since it was looked at.
    """
    folder.claim(recipe.to_yaml(), resume)
    if list_checkpoints(folder / CHECKPOINTS) != saved:
        folder.close()
        raise UserError(f"Another process trained on in {folder} meanwhile: run the same command again.")


def run_steps(
    recipe: Recipe,
    step: Step,
    losses: Losses,
    progress: Progress,
    datasets: dict[str, PreparedDataset],
    folder: RunFolder,
    reporter: Reporter,
    preemption: Preemption,
) -> dict[str, Evaluation]:
    """Step, log, evaluate, save and push up to the last step; return its evaluation."""
    settings, evaluations = recipe.train, None
    push_every = recipe.output.push_every or settings.checkpoint_every
    preemption.check()
    step.fix_gradient_order()
    loader = training_loader(
        datasets[recipe.data.train].splits["train"],
        plan=step.plan,
        rank=step.accelerator.process_index,
        start_step=progress.step,
        steps=settings.steps,
        crop_size=recipe.data.crop,
        seed=recipe.seed,
        num_workers=num_workers(recipe.data.num_workers, step.accelerator.device),
        augment=recipe.augment,
    )
    batches = copied_ahead(loader, step.accelerator.device)
    for number in progress.unlogged_steps(settings.steps):
        logs, evaluates, saves = (
            is_due(number, every, settings.steps)
            for every in (settings.log_every, settings.eval_every, settings.checkpoint_every)
        )
        if not progress.is_made(number):
            with progress.timed("train_seconds"):
                losses.add(step(number, batches))
                progress.step = number
                if logs or saves:
                    progress.losses += losses.collect(number)
            reporter.tracking.advance()
        if saves:  # before an evaluation, which may fail
            save(recipe, step, losses, progress, folder, reporter)
        evaluations = evaluate(recipe, step, progress, datasets, preemption) if evaluates else None
        if logs:
            reporter.log_training(step.set_rates(number))
        if evaluations:
            reporter.log_evaluations(evaluations)
            note_best(recipe, step, progress, evaluations, folder)
        progress.logged_step = number
        if recipe.output.hub_model_id and number < settings.steps and number % push_every == 0:
            reporter.push(evaluations, step.saved_weights())
        preemption.check()
    # No step is left where all but the results was written.
    return evaluations or evaluate(recipe, step, progress, datasets, preemption)


def evaluate(
    recipe: Recipe,
    step: Step,
    progress: Progress,
    datasets: dict[str, PreparedDataset],
    preemption: Preemption,
) -> dict[str, Evaluation]:
    """Score the model on each validation dataset."""
    size = recipe.train.eval_batch_size
    advice = f"set train.eval_batch_size to {size // 2}" if size > 1 else None
    step.anneal(progress.step / recipe.train.steps)
    too_many = f"An evaluation of {size} windows at once"
    with progress.timed("eval_seconds"), explain_out_of_memory(too_many, advice), step.as_saved():
        return build.evaluate_datasets(
            recipe,
            step.unwrapped_model(),
            datasets,
            step.accelerator,
            num_samples=PANELS,
            any_process=preemption.any_process,
        )


def note_best(
    recipe: Recipe, step: Step, progress: Progress, evaluations: dict[str, Evaluation], folder: RunFolder
) -> None:
    """Say the score and the best one so far, and keep the best model where train.keep_best says so."""
    score = next(iter(evaluations.values())).scores["mean_iou"]
    if score is None:
        return
    if score > progress.best:
        progress.best, progress.best_step = score, progress.step
        if recipe.train.keep_best:
            weights = step.saved_weights()
            if step.accelerator.is_main_process:
                note = "chosen on the validation data, whose score is therefore too high"
                chosen = {"step": progress.step, "mean_iou": score, "note": note}
                (folder / BEST).mkdir(exist_ok=True)
                write_atomically(folder / BEST / CHOSEN, json.dumps(chosen).encode())
                save_model(folder / BEST, step.config, weights)  # whose sums are of all files
    if step.accelerator.is_main_process:
        best = f"{100 * progress.best:.2f} % at step {progress.best_step:,}"
        folder.say(f"step {progress.step:,}: mIoU {100 * score:.2f} %, best {best}")


def save(recipe: Recipe, step: Step, losses: Losses, progress: Progress, folder: RunFolder, reporter: Reporter) -> None:
    """Write a checkpoint of the steps made so far, unless the last one is of the same step."""
    if progress.step == progress.saved_step:
        return
    accelerator = step.accelerator
    progress.losses += losses.collect(progress.step)
    progress.scaler = accelerator.scaler.state_dict() if accelerator.scaler else {}
    progress.saved_step = progress.step
    reporter.tracking.flush()
    save_checkpoint(
        folder / CHECKPOINTS,
        accelerator,
        step.model,
        step.optimizer.optimizer,
        progress,
        identity=identity_hash(recipe),
        keep=recipe.train.keep_checkpoints,
        average=step.average,
    )


def load_progress(
    checkpoint: Checkpoint | None, step: Step, train: str, datasets: Mapping[str, PreparedDataset], folder: RunFolder
) -> Progress:
    """Load weights and moments, and return what the run has done; a new run's progress without a checkpoint.

    Args:
        train: the training dataset's name.
        datasets: those of training and of validation, by name.

    Raises:
        UserError: the checkpoint was trained or scored on other data.
    """
    digests = {name: dataset.fingerprint["digest"] for name, dataset in datasets.items()}
    if checkpoint is None:
        return Progress(digests=digests)
    progress = load_checkpoint(checkpoint, step.accelerator, step.model, step.optimizer.optimizer, step.average)
    for name, digest in digests.items():
        then = progress.digests.get(name) or (progress.digests.get("", "") if name == train else "")
        if then != digest and then.startswith(CONTENT):  # an older version knew its archives' indexes alone
            raise UserError(
                f"{folder} was {'trained' if name == train else 'scored'} on other files of {datasets[name].name} than "
                "data.root holds now: restore the former ones or name another output.dir."
            )
    progress.digests = digests
    if progress.scaler:
        step.accelerator.scaler.load_state_dict(progress.scaler)
    if step.accelerator.is_main_process:
        folder.say(f"Resuming after step {progress.step} of {folder}.")
    return progress


def check_data(run: str, results: dict, train: str, datasets: Mapping[str, PreparedDataset]) -> None:
    """Say that the scores of a finished run do not hold for the data that are there now.

    Args:
        run: what it is called in the sentence.
        train: the training dataset's name.
        datasets: by name, as they are now.

    Raises:
        UserError: a dataset is not the one that was trained or scored on.
    """
    then = {train: results["dataset_fingerprint"]}
    then |= {name: scores["fingerprint"] for name, scores in results["datasets"].items()}
    for name, fingerprint in then.items():
        now = datasets[name].fingerprint["digest"]
        if fingerprint and fingerprint["digest"].startswith(CONTENT) and fingerprint["digest"] != now:
            raise UserError(
                f"{run} was finished on other files of {name} than data.root holds now, so its scores do not hold "
                "for them: train again in another folder, or restore the former files."
            )


def end_early(reporter: Reporter, error: BaseException) -> None:
    """Close the logs; end the process where a push is running, because Python would wait for its threads."""
    reporter.close()
    if reporter.is_pushing():
        os._exit(report_error(error))
