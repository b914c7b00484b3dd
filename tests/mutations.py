"""Small wrong changes, each of which a test must catch: `python tests/mutations.py [WORD ...]`.

Each change is made in a copy of the repository, alone, and the tests that could see it run there. The table says which
test caught it; the exit status is 1 where one was not caught. With words, only the changes that contain one of them in
their file or description. Not in the default suite: it takes about twenty minutes on two cores.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
WIRING = "tests/test_wiring.py"


class Mutation(NamedTuple):
    """In `file`, the text `old`, which is there once, becomes `new`; `tests` could see it."""

    what: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = [
    # wiring: the recipe's way into the run
    Mutation(
        "no jitter",
        "benchmark/training/step.py",
        "pixels = color_jitter(pixel_values, thumbnails, jitter, sizes)",
        "pixels = pixel_values",
        WIRING,
    ),
    Mutation(
        "other pixel statistics in training",
        "benchmark/training/step.py",
        '"pixel_values": normalize(pixels, image_mean, image_std)',
        '"pixel_values": normalize(pixels, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))',
        WIRING,
    ),
    Mutation(
        "other pixel statistics in evaluation",
        "benchmark/evaluation/inference.py",
        "normalize(pixels, config.image_mean, config.image_std)",
        "normalize(pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))",
        WIRING,
    ),
    Mutation(
        "learning rate off by one step",
        "benchmark/training/optim.py",
        "done, before = step - 1, wait + warmup",
        "done, before = step, wait + warmup",
        f"{WIRING} tests/training/test_optim.py",
    ),
    Mutation(
        "encoder_lr_multiplier ignored",
        "benchmark/training/build.py",
        "encoder_lr_multiplier=optim.encoder_lr_multiplier",
        "encoder_lr_multiplier=1.0",
        WIRING,
    ),
    Mutation(
        "weight_decay ignored",
        "benchmark/training/build.py",
        "weight_decay=optim.weight_decay",
        "weight_decay=0.05",
        WIRING,
    ),
    Mutation("poly_power ignored", "benchmark/training/build.py", "power=optim.poly_power", "power=0.9", WIRING),
    Mutation("sample seed ignored", "benchmark/training/loop.py", "seed=recipe.seed,", "seed=0,", WIRING),
    Mutation("other betas", "benchmark/training/optim.py", "betas=tuple(betas)", "betas=(0.9, 0.95)", WIRING),
    Mutation("betas ignored", "benchmark/training/build.py", "betas=optim.betas", "betas=(0.9, 0.999)", WIRING),
    Mutation("eps ignored", "benchmark/training/build.py", "eps=optim.eps", "eps=1e-8", WIRING),
    Mutation("augment ignored", "benchmark/training/loop.py", "augment=recipe.augment,", "", WIRING),
    Mutation(
        "head options ignored",
        "benchmark/training/build.py",
        "head_options=recipe.model.head_options(),",
        "",
        f"{WIRING} tests/test_golden.py",
    ),
    Mutation(
        "no reduction over processes",
        "benchmark/evaluation/evaluator.py",
        'accelerator.reduce(evaluator.total.to(accelerator.device), "sum").cpu()',
        "evaluator.total",
        WIRING,
    ),
    Mutation(
        "images' counts of one process alone",
        "benchmark/evaluation/evaluator.py",
        "gather_object(numbered)",
        "numbered",
        WIRING,
    ),
    Mutation(
        "permission to round stays",
        "benchmark/training/cpu.py",
        "if not _multiplies_exactly():",
        "if False:",
        "tests/training/test_cpu.py",
    ),
    Mutation(
        "an inexact product passes",
        "benchmark/training/cpu.py",
        "1 + 2.0**-23",
        "1 + 2.0**-7",
        "tests/training/test_cpu.py",
    ),
    Mutation(
        "a run does not set its CPU up",
        "benchmark/training/launch.py",
        "set_up_cpu(recipe.train.precision, recipe.data.crop, int(recipe.model.patch_size))",
        "pass",
        "tests/training/test_cpu.py",
    ),
    Mutation(
        "head seed ignored",
        "benchmark/training/build.py",
        "torch.manual_seed(recipe.seed)",
        "torch.manual_seed(0)",
        "tests/test_golden.py",
    ),
    Mutation(
        "loss seed ignored", "benchmark/training/build.py", "seed=int(recipe.seed),", "seed=0,", "tests/test_golden.py"
    ),
    Mutation(
        "positions not passed to the loss",
        "benchmark/training/step.py",
        '"positions": positions,',
        "",
        f"{WIRING} tests/test_golden.py",
    ),
    # steps
    Mutation(
        "a step takes the samples of the next",
        "benchmark/data/step_plan.py",
        "first = step * self.global_batch_size + rank * self.share",
        "first = (step + 1) * self.global_batch_size + rank * self.share",
        f"{WIRING} tests/data/test_loaders.py",
    ),
    Mutation(
        "processes take the same samples",
        "benchmark/data/step_plan.py",
        "+ rank * self.share",
        "",
        "tests/data/test_loaders.py",
    ),
    Mutation(
        "optimizer steps once a micro batch",
        "benchmark/training/memory.py",
        "accelerator.gradient_accumulation_steps = plan.accumulation",
        "pass",
        WIRING,
    ),
    Mutation(
        "logged loss is the last step's",
        "benchmark/reporting/reporter.py",
        "sum(losses[name] for losses in progress.losses) / count",
        "count * progress.losses[-1][name] / count",
        "tests/reporting/test_reporter.py",
    ),
    # losses and metric
    Mutation(
        "cross-entropy over all pixels of the batch",
        "benchmark/models/linear_head.py",
        "return losses / labelled\n",
        "return losses / labelled.float().mean()\n",
        "tests/models/test_modeling.py",
    ),
    Mutation(
        "ignored pixels counted",
        "benchmark/evaluation/mean_iou.py",
        "counts = pairs[torch.arange(256, device=pairs.device) != IGNORE_INDEX]",
        "counts = pairs[torch.arange(256, device=pairs.device) != 254]",
        "tests/evaluation",
    ),
    Mutation(
        "IoU without false negatives",
        "benchmark/evaluation/mean_iou.py",
        "label + found - hit for hit, label, found",
        "found for hit, label, found",
        "tests/evaluation",
    ),
    Mutation(
        "absent classes count as 0",
        "benchmark/evaluation/mean_iou.py",
        "a / b if b else None",
        "a / b if b else 0.0",
        "tests/evaluation",
    ),
    Mutation(
        "dice part is the mask part",
        "benchmark/models/mask2former_loss.py",
        '"dice": mask_loss.detach() - mask_part',
        '"dice": mask_part',
        "tests/models/test_mask2former_loss.py",
    ),
    Mutation(
        "no-object weight ignored",
        "benchmark/models/mask2former_loss.py",
        "torch.where(targets == num_outputs - 1, no_object_weight, 1.0)",
        "torch.where(targets == num_outputs - 1, 1.0, 1.0)",
        "tests/models/test_mask2former_loss.py",
    ),
    Mutation(
        "overlapping windows are summed",
        "benchmark/models/windows.py",
        "return total.div_(count)",
        "return total",
        "tests/models/test_windows.py",
    ),
    Mutation(
        "windows leave the last column out",
        "benchmark/models/windows.py",
        "j * (length - crop) // max(count - 1, 1)",
        "j * (length - crop) // max(count, 1)",
        "tests/models/test_windows.py",
    ),
    # augmentation
    Mutation(
        "labels are not flipped",
        "benchmark/data/transforms.py",
        "columns = label.shape[1] - 1 - columns",
        "columns = columns",
        "tests/data/test_transforms.py",
    ),
    Mutation(
        "nearest-exact for labels",
        "data_scripts/images.py",
        "np.arange(resized, dtype=np.float32) * scale",
        "(np.arange(resized, dtype=np.float32) + 0.5) * scale",
        "tests/data/test_transforms.py tests/data_scripts",
    ),
    Mutation(
        "contrast's mean before the steps before it",
        "benchmark/data/color_jitter.py",
        "pixels = blend(pixels, mean_gray(thumbs), late_contrast)",
        "pixels = blend(pixels, mean, late_contrast)",
        "tests/data/test_color_jitter.py",
    ),
    # recipe
    Mutation(
        "a later file does not override",
        "benchmark/recipe/parser.py",
        "flags = [flag for file in files for flag in _file_flags(Path(file))]",
        "flags = [flag for file in reversed(files) for flag in _file_flags(Path(file))]",
        "tests/recipe",
    ),
    Mutation(
        "the protocol knows the seed",
        "benchmark/recipe/identity.py",
        'for key in keys if key != "seed" and not',
        "for key in keys if not",
        "tests/recipe",
    ),
    Mutation(
        "hashes hold all keys",
        "benchmark/recipe/identity.py",
        "for key, value in keys.items() if value != defaults[key]",
        "for key, value in keys.items()",
        "tests/recipe",
    ),
    Mutation(
        "a base overrides its recipe",
        "benchmark/recipe/parser.py",
        'flags.append(Flag(key, value if isinstance(value, str) else to_text(value), f"in {file}"))',
        'flags.insert(0, Flag(key, value if isinstance(value, str) else to_text(value), f"in {file}"))',
        "tests/recipe",
    ),
    # the run folder
    Mutation(
        "no lock",
        "benchmark/reporting/run_folder.py",
        "fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "tests/reporting/test_run_folder.py",
    ),
    Mutation(
        "resume from a damaged file",
        "benchmark/reporting/manifest.py",
        'if _sha256(data) != expected["sha256"]:',
        "if False:",
        "tests/training/test_checkpoint.py",
    ),
    Mutation(
        "a model's sums are not checked",
        "benchmark/reporting/model_folder.py",
        "read_files(folder, read_manifest(folder))",
        "pass",
        "tests/reporting/test_model_folder.py",
    ),
    Mutation(
        "moments are not loaded",
        "benchmark/training/checkpoint.py",
        '"state": _unflatten(safetensors.torch.load(files[moments_file])),',
        '"state": {},',
        "tests/training/test_checkpoint.py tests/training/test_training.py",
    ),
    Mutation(
        "metrics are not cut back",
        "benchmark/reporting/tracking.py",
        "cut_back(self.metrics, start_step)",
        "pass",
        "tests/training/test_training.py",
    ),
    Mutation(
        "a resumed run starts the stream again",
        "benchmark/training/loop.py",
        "start_step=progress.step,",
        "start_step=0,",
        "tests/training/test_training.py",
    ),
    # data
    Mutation(
        "ADE20K's classes off by one", "data_scripts/ade20k.py", "raw: raw - 1", "raw: raw % 150", "tests/data_scripts"
    ),
    Mutation(
        "EXIF turns a training image",
        "benchmark/data/transforms.py",
        "image = Image.open(io.BytesIO(encoded))",
        "from PIL import ImageOps; image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))",
        "tests/data/test_transforms.py",
    ),
    # people's own data
    Mutation(
        "images of one value are left out of own data",
        "data_scripts/builder.py",
        "drops_one_value: ClassVar[bool] = False",
        "drops_one_value: ClassVar[bool] = True",
        "tests/data_scripts/test_own_data.py",
    ),
    Mutation(
        "the fingerprint does not see the labels",
        "data_scripts/counts.py",
        "self.content += content_sum(name, pair.image, labels)",
        "self.content += content_sum(name, pair.image, labels * 0)",
        "tests/data_scripts/test_own_data.py tests/training/test_own_data.py",
    ),
    Mutation(
        "a row's checksum is not verified",
        "benchmark/data/loaders.py",
        'if "checksum" in row and row["checksum"] != checksum(',
        'if "sum" in row and row["checksum"] != checksum(',
        "tests/data tests/training/test_own_data.py",
    ),
    Mutation(
        "pixels of more than 8 bits are cut",
        "benchmark/models/windows.py",
        "if image.mode not in IMAGE_MODES or deep:",
        "if False:",
        "tests/models/test_rgb_tensor.py",
    ),
    Mutation(
        "a saved model asks the Hub for its encoder's configuration",
        "benchmark/models/modeling.py",
        "config.encoder_source = self.encoder.source",
        "pass",
        "tests/models/test_hub_encoder.py",
    ),
    Mutation(
        "rows of a class come from another place",
        "benchmark/training/init_from.py",
        "shared = list(places.items())",
        "shared = [(index, index) for index in places]",
        "tests/training/test_init_from.py",
    ),
    Mutation(
        "255 beside one value is ignored silently",
        "data_scripts/own.py",
        "if len(others) <= 1:",
        "if len(others) < 1:",
        "tests/data_scripts/test_own_data.py",
    ),
    # schedules, averages and adapters
    Mutation(
        "layers counted from the wrong end",
        "benchmark/training/optim.py",
        "count - int(block[1]) if block",
        "int(block[1]) + 1 if block",
        "tests/training/test_optim.py",
    ),
    Mutation(
        "a warm-up that begins with a step of its rate",
        "benchmark/training/optim.py",
        "max(0, done - wait) / warmup",
        "max(0, done - wait + 1) / warmup",
        "tests/training/test_optim.py",
    ),
    Mutation(
        "gradients clipped at twice the norm",
        "benchmark/training/step.py",
        "clip_grad_norm_(self.model.parameters(), most)",
        "clip_grad_norm_(self.model.parameters(), 2 * most)",
        "tests/test_wiring.py",
    ),
    Mutation(
        "an average that forgets",
        "benchmark/training/optim.py",
        "self.weights, 1 - self.decay)",
        "self.weights, self.decay)",
        "tests/training/test_training.py",
    ),
    Mutation(
        "an average that starts again on resume",
        "benchmark/training/checkpoint.py",
        'average.load_state_dict(safetensors.torch.load(files["ema.safetensors"]))',
        "pass",
        "tests/training/test_training.py",
    ),
    Mutation(
        "the average is not evaluated",
        "benchmark/training/optim.py",
        "            yield\n        finally:\n            self._swap()",
        "            self._swap()\n            yield\n            self._swap()\n        finally:\n            self._swap()",
        "tests/training/test_training.py",
    ),
    Mutation(
        "adapters that separate biases pass by",
        "benchmark/training/lora.py",
        "    _separate_biases(encoder, True)\n",
        "    _separate_biases(encoder, False)\n",
        "tests/training/test_lora.py",
    ),
    Mutation(
        "adapters are not merged",
        "benchmark/training/lora.py",
        "        layer.merge()\n",
        "        pass\n",
        "tests/training/test_lora.py",
    ),
    Mutation(
        "class weights that nobody counts",
        "benchmark/models/linear_head.py",
        "weights[labels.long()]",
        "(labels != IGNORE_INDEX).float()",
        "tests/models/test_upsampled_cross_entropy.py",
    ),
    Mutation(
        "the queries that lost their masks keep them",
        "benchmark/models/eomt_head.py",
        "inside | ~masked[..., None]",
        "inside | masked[..., None]",
        "tests/models/test_eomt_head.py",
    ),
    Mutation(
        "queries turned by rotary embeddings",
        "benchmark/models/eomt_head.py",
        "block.attn.num_prefix_tokens += len(self.queries)",
        "block.attn.num_prefix_tokens += 0",
        "tests/models/test_eomt_head.py",
    ),
    Mutation(
        "masks of another threshold",
        "benchmark/models/eomt_head.py",
        ".flatten(2) > 0",
        ".flatten(2) > 1",
        "tests/models/test_eomt_head.py",
    ),
    Mutation(
        "all images lose the same masks",
        "benchmark/models/eomt_head.py",
        "draw_points(seed, -1 - positions,",
        "draw_points(seed, -1 - positions * 0,",
        "tests/models/test_eomt_head.py",
    ),
    Mutation(
        "another layer's mask features",
        "benchmark/models/mask2former_loss.py",
        'torch.einsum("lbte,lbehw->btlhw", matched, features)',
        'torch.einsum("lbte,lbehw->btlhw", matched, features.flip(0))',
        "tests/models/test_eomt_head.py",
    ),
    Mutation(
        "a model that is evaluated without its masks",
        "benchmark/training/loop.py",
        "    step.anneal(progress.step / recipe.train.steps)\n",
        "    step.anneal(1)\n",
        "tests/training/test_mask2former_training.py",
    ),
    Mutation(
        "layers without the final norm",
        "benchmark/models/multilayer_linear_head.py",
        "[encoder.final_norm(tokens) for tokens in layers]",
        "layers",
        "tests/models/test_multilayer_linear_head.py",
    ),
    Mutation(
        "ignored pixels keep their prediction",
        "benchmark/evaluation/boundary_iou.py",
        "torch.where(reference == IGNORE_INDEX, IGNORE_INDEX, prediction.int())",
        "prediction.int()",
        "tests/evaluation/test_boundary_iou.py",
    ),
    Mutation(
        "a boundary that leaves out corners",
        "benchmark/evaluation/boundary_iou.py",
        "pairs > 0",
        "pairs > 2",
        "tests/evaluation/test_boundary_iou.py",
    ),
    Mutation(
        "classes that all weigh alike",
        "benchmark/study/metrics.py",
        "Counts(intersections, unions, labelled)",
        "Counts(intersections, unions)",
        "tests/study/test_metrics.py",
    ),
    Mutation(
        "labels of COCO-Stuff off by one",
        "data_scripts/coco_stuff.py",
        'enumerate(LABELS.split(","))',
        'enumerate(LABELS.split(","), 1)',
        "tests/data_scripts/test_further_layouts.py",
    ),
    Mutation(
        "no data is background",
        "data_scripts/loveda.py",
        "LabelRule({0: IGNORE}",
        "LabelRule({0: 0}",
        "tests/data_scripts/test_further_layouts.py",
    ),
    # what leaves the project
    Mutation(
        "a file has other pixel statistics",
        "benchmark/export/onnx_file.py",
        "outputs = self.model(normalize(pixels, config.image_mean, config.image_std))",
        "outputs = self.model(normalize(pixels, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))",
        "tests/export/test_onnx.py",
    ),
    Mutation(
        "a pipeline merges an image's windows in another order",
        "benchmark/models/pipeline.py",
        "for outputs in model_outputs]) for key",
        "for outputs in model_outputs[::-1]]) for key",
        "tests/models/test_remote_code.py",
    ),
    Mutation(
        "a broken image is no failure",
        "benchmark/commands/predict.py",
        "        sys.exit(1)",
        "        pass",
        "tests/commands/test_predict.py",
    ),
    Mutation(
        "a video's frames come at a constant rate",
        "benchmark/prediction/video.py",
        "pts, time_base = frame.pts, frame.time_base",
        "pts, time_base = number, 1 / rate",
        "tests/commands/test_predict.py",
    ),
    Mutation(
        "a run is published without its counts",
        "benchmark/commands/push.py",
        "run_folder=run,",
        "run_folder=run / 'model',",
        "tests/reporting/test_hub.py",
    ),
    Mutation(
        "facts of encoders that outlive an update of timm",
        "benchmark/commands/encoders.py",
        "timm-{version('timm')}-torch",
        "timm-torch",
        "tests/commands/test_encoders_command.py",
    ),
    Mutation(
        "arithmetic of another size than the run's",
        "benchmark/training/build.py",
        "window = torch.zeros(1, 3, *recipe.data.crop)",
        "window = torch.zeros(1, 3, 224, 224)",
        "tests/training tests/launchers",
    ),
    Mutation(
        "16-bit colours are cut",
        "benchmark/models/windows.py",
        "if image.mode not in IMAGE_MODES or deep:",
        "if image.mode not in IMAGE_MODES:",
        "tests/models/test_rgb_tensor.py",
    ),
    Mutation(
        "the chosen model is scored as the run's last one",
        "benchmark/reporting/run_folder.py",
        '| {"train_seconds": None} if chosen.exists() else results',
        "if False else results",
        "tests/training/test_training.py",
    ),
]


def run(mutation: Mutation) -> str | None:
    """The first test that catches a mutation; None where none does."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "copy"
        names = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
        )
        for name in names.stdout.splitlines():
            if (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copy / name)
        file = copy / mutation.file
        text = file.read_text()
        if text.count(mutation.old) != 1:
            raise SystemExit(f"{mutation.what}: the text is there {text.count(mutation.old)} times: update MUTATIONS.")
        file.write_text(text.replace(mutation.old, mutation.new))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *mutation.tests.split()],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "TMPDIR": temporary},
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            return None
        found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
        return found[1] if found else done.stdout[-300:] + done.stderr[-300:]


def main(words: list[str]) -> int:
    chosen = [m for m in MUTATIONS if not words or any(word in m.what + m.file for word in words)]
    width = max(len(m.what) for m in chosen)
    missed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutation, test in zip(chosen, pool.map(run, chosen), strict=True):
            missed += test is None
            print(f"{mutation.what:<{width}}  {test or 'NOT CAUGHT'}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
