import pytest

from benchmark.command_line import CommandParser, load_recipe
from benchmark.errors import UserError
from benchmark.recipe import KEYS, Data, Recipe


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "recipe.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_later_files_and_then_flags_override_key_by_key(write):
    first = write("seed: 1\ntrain: {steps: 10, global_batch_size: 4}\ndata: {val: [a, b]}\n", "first.yaml")
    second = write("train: {steps: 20}\ndata: {val: [c]}\n", "second.yaml")
    recipe = load_recipe([first, second], ["--seed", "3", "--model.image_mean=[0.1, 0.2, 0.3]"])
    assert (recipe.seed, recipe.train.steps, recipe.train.global_batch_size) == (3, 20, 4)
    assert recipe.data.val == ["c"] and recipe.model.image_mean == [0.1, 0.2, 0.3]
    assert recipe.output.setting == "first" and recipe.output.dir.startswith("runs/first/")


def test_overrides_stand_anywhere_on_the_line(write):
    parser = CommandParser()
    parser.add_recipe()
    line = ["--train.steps", "7", "--recipe", write("seed: 2"), "--optim.lr", "0.5"]
    _, recipe = parser.parse_recipe(line)
    assert (recipe.train.steps, recipe.seed, recipe.optim.lr) == (7, 2, 0.5)


def test_a_resolved_recipe_reads_back_as_itself(write):
    recipe = load_recipe([write("data: {crop_size: [32, 64], root: '3'}\nmodel: {checkpoint: 'a: b', num_points: 5}")])
    assert load_recipe([write(recipe.to_yaml(), "resolved.yaml")]) == recipe


@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        ("train: {stepz: 5}", [], "train.stepz.*did you mean train.steps"),
        ("steps: 5", [], "did you mean train.steps"),
        ("", ["--train.step", "3"], "did you mean train.steps"),
        ("train:\n  steps: 3\n  steps: 4", [], "line 3.*'steps' stands there twice"),
        ("train: 3", [], "'train' .*is a section"),
        ("train: {steps: 0}", [], "train.steps must be a whole number above 0, not 0"),
        ("train: {steps: 1.5}", [], "train.steps must be a whole number"),
        ("train: {steps: true}", [], "train.steps must be a whole number"),
        ("train: {compile: 1}", [], "train.compile must be true or false, not 1"),
        ("train: {precision: fp8}", [], "one of fp32, bf16, fp16, not fp8"),
        ("optim: {lr: '1e-4'}", [], "optim.lr .* must be a number above 0"),
        ("optim: {lr: null}", [], "optim.lr must be a number above 0, not null"),
        ("optim: {lr: .inf}", [], "optim.lr must be"),
        ("optim: {lr: .nan}", [], "optim.lr must be"),
        ("data: {val: shapes}", [], "data.val .* must be a list"),
        ("data: {val: []}", [], "data.val must name at least one"),
        ("data: {crop_size: [1, 2, 3]}", [], "one number or \\[height, width\\]"),
        ("data: {crop_size: 100}", [], "model.patch_size 16.*\\[96, 96\\]"),
        ("model: {image_mean: [1, 2]}", [], "model.image_mean must hold three"),
        ("model: {encoder: [a]}", [], "model.encoder .* must be a text"),
        ("seed: -1", [], "seed must be a whole number, 0 or more"),
        ("a: [", [], "not good YAML"),
        ("- a", [], "must hold keys and values"),
        ("", ["--seed"], "--seed .* has no value"),
        ("", ["loose"], "'loose' .* belongs to no flag"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_key(write, text, flags, expected):
    with pytest.raises(UserError, match=expected) as error:
        load_recipe([write(text)], flags)
    assert "\n" not in str(error.value)


def test_a_missing_file_names_the_nearest(write, tmp_path):
    write("", "quickstart.yaml")
    with pytest.raises(UserError, match=r"did you mean .*quickstart\.yaml"):
        load_recipe([str(tmp_path / "quickstrat.yaml")])


def test_numbers_may_be_written_in_scientific_notation(write):
    assert load_recipe([write("optim: {lr: 1e-4}")]).optim.lr == 1e-4


def changed(key: str) -> Recipe:
    """The default recipe but for another value of `key`."""
    for value in (
        "7",
        "0.3",
        "true",
        "false",
        "32",
        "mask2former",
        "fp32",
        "[x]",
        "[0.1, 0.2, 0.3]",
        "[[1, 2, 3]]",
        "{1: 2}",
    ):
        try:
            recipe = load_recipe([], [f"--{key}={value}"])
        except UserError:
            continue
        if recipe.to_dict() != load_recipe([]).to_dict():
            return recipe
    raise AssertionError(f"no other value for {key}")


def test_the_protocol_ignores_encoder_seed_and_machine_but_no_other_key():
    unchanged = {key for key in KEYS if changed(key).protocol() == load_recipe([]).protocol()}
    assert unchanged == {
        "seed",
        *(f"data.{key}" for key in ("root", "cache_dir", "num_workers")),
        *(f"model.{key}" for key in ("encoder", "pretrained", "checkpoint", "image_mean", "image_std")),
        *(f"train.{key}" for key in ("micro_batch_size", "compile", "deterministic", "eval_batch_size")),
        *(f"train.{key}" for key in ("log_every", "checkpoint_every", "keep_checkpoints")),
        *(key for key in KEYS if key.startswith("output.")),
    }


def test_one_crop_has_one_protocol_however_it_is_written():
    square, pair, other = (Recipe(data=Data(crop_size=crop)).protocol() for crop in (512, [512, 512], [512, 256]))
    assert square == pair != other


def test_a_seed_that_generators_cannot_take_is_refused():
    with pytest.raises(UserError, match=r"seed must be below 2\*\*31"):
        Recipe(seed=2**31)


def test_a_run_may_be_resumed_on_another_machine_but_not_by_another_recipe():
    base = load_recipe([]).identity()
    kept = {key for key in KEYS if changed(key).identity() == base}
    assert {"data.root", "data.num_workers", "train.micro_batch_size", "train.compile", "output.dir"} <= kept
    assert not kept & {
        "seed",
        "train.steps",
        "data.train",
        "model.encoder",
        "model.checkpoint",
        "optim.lr",
        "train.precision",
    }
