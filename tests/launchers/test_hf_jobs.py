"""Hugging Face Jobs against a stand-in of the Hub on loopback: what is asked for, what is not asked for again."""

import shlex

import pytest
import yaml
from hub_server import TOKEN
from launching import ROOT, parse
from synthetic_runs import write_run

from benchmark.errors import UserError
from benchmark.launchers import hf_jobs
from benchmark.reporting.hub import publish_space
from benchmark.study.study import load_study

STUDY = ROOT / "recipes" / "studies" / "tiny.yaml"
COMMIT = "f" * 40


@pytest.fixture
def jobs_hub(online, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(hf_jobs, "code_version", lambda: {"commit": COMMIT, "modified": False})
    return online


OPTIONS = {"flavor": "a100-large", "source": "https://example.org/code.git"}


def test_each_run_is_one_job_that_trains_its_recipe_and_pushes_it(jobs_hub, tmp_path):
    study = load_study(STUDY, folder=tmp_path / "tiny")
    hf_jobs.submit(study, study.cells[:2], OPTIONS, None)
    assert [job["labels"]["run"] for job in jobs_hub.jobs] == ["tiny-linear-vit-seed0", "tiny-linear-vit-seed1"]
    job = jobs_hub.jobs[1]
    assert (job["flavor"], job["secrets"], job["dockerImage"]) == ("a100-large", {"HF_TOKEN": TOKEN}, "python:3.12")
    assert job["timeoutSeconds"] == 24 * 3600
    steps = [shlex.split(step) for step in job["command"][2].split(" && ")]
    assert steps[0] == ["git", "clone", "--quiet", "https://example.org/code.git", "code"]
    assert steps[2][-1] == COMMIT
    line = steps[-1]
    assert line[line.index("train.py") - 1] == "accelerate_configs/single_gpu.yaml"
    recipe = parse(line[line.index("train.py") + 1 :])
    assert (recipe.output.hub_model_id, recipe.output.hub_private) == ("user/tiny-linear-vit-seed1", True)
    assert recipe.model == study.cells[1].recipe.model
    assert TOKEN not in job["command"][2]


@pytest.mark.parametrize(
    ("settings", "encoders", "told"),
    [(("a", "a-b"), ("b-c", "c"), "Two runs would be pushed to"), (("a+b",), ("c",), "is no name for a repository")],
)
def test_runs_have_a_repository_each_before_any_job_starts(jobs_hub, tmp_path, settings, encoders, told):
    tiny = yaml.safe_load(STUDY.read_text())
    setting, encoder = [str(ROOT / "recipes" / "quickstart.yaml")], tiny["encoders"]["vit"]
    tiny |= {"settings": dict.fromkeys(settings, setting), "encoders": dict.fromkeys(encoders, encoder), "seeds": [0]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tiny))
    study = load_study(tmp_path / "own.yaml", folder=tmp_path / "runs")
    with pytest.raises(UserError, match=told):
        hf_jobs.submit(study, study.cells[:1], OPTIONS, None)
    assert not jobs_hub.jobs


def test_what_runs_or_was_pushed_is_not_started_again(jobs_hub, tmp_path, capsys):
    study = load_study(STUDY, folder=tmp_path / "tiny")
    hf_jobs.submit(study, study.cells[:1], OPTIONS, None)
    hf_jobs.submit(study, study.cells[:3], OPTIONS, None)
    assert len(jobs_hub.jobs) == 3
    cell = study.cells[0]
    trained = tmp_path / "trained"
    write_run(trained, cell.files, cell.flags, 0.8)
    files = {path.name: path.read_bytes() for path in trained.iterdir()}
    jobs_hub.repos["user/tiny-linear-vit-seed0"] = [("The finished model", files)]
    for job in jobs_hub.jobs:
        job["status"]["stage"] = "ERROR"
    hf_jobs.submit(study, study.cells[:3], OPTIONS, None)
    assert [job["labels"]["run"] for job in jobs_hub.jobs[3:]] == ["tiny-linear-vit-seed1", "tiny-linear-vit2-seed0"]
    assert {path.name: path.read_bytes() for path in cell.folder.iterdir()} == files
    assert "1 run(s) fetched, 0 in the queue, 2 started" in capsys.readouterr().out


def test_results_that_were_pushed_while_a_run_trains_are_not_its_results(jobs_hub, tmp_path):
    study = load_study(STUDY, folder=tmp_path / "tiny")
    cell = study.cells[0]
    write_run(tmp_path / "early", cell.files, cell.flags, 0.8, step=50)
    files = {path.name: path.read_bytes() for path in (tmp_path / "early").iterdir()}
    jobs_hub.repos["user/tiny-linear-vit-seed0"] = [("Step 50", files)]
    hf_jobs.submit(study, [cell], OPTIONS, None)
    assert len(jobs_hub.jobs) == 1
    assert not cell.folder.exists()


def test_a_recipe_that_was_pushed_without_the_machines_paths_is_the_runs(jobs_hub, tmp_path):
    study = load_study(STUDY, ["--model.checkpoint", "/weights/vit.pth"], folder=tmp_path / "tiny")
    cell = study.cells[0]
    write_run(tmp_path / "trained", cell.files, cell.flags, 0.8)
    files = {path.name: path.read_bytes() for path in (tmp_path / "trained").iterdir()}
    files["recipe.yaml"] = files["recipe.yaml"].replace(b"/weights/vit.pth", b"vit.pth")
    jobs_hub.repos["user/tiny-linear-vit-seed0"] = [("The finished model", files)]
    hf_jobs.submit(study, [cell], OPTIONS, None)
    assert not jobs_hub.jobs and (cell.folder / "results.json").exists()


def test_results_of_another_recipe_are_not_a_runs(jobs_hub, tmp_path):
    study = load_study(STUDY, folder=tmp_path / "tiny")
    cell = study.cells[0]
    write_run(tmp_path / "other", cell.files, [*cell.flags, "--optim.lr", "0.5"], 0.8)
    files = {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}
    jobs_hub.repos["user/tiny-linear-vit-seed0"] = [("The finished model", files)]
    with pytest.raises(UserError, match=r"tiny-linear-vit-seed0 .* holds a run of another recipe \(optim.lr is 0.5"):
        hf_jobs.submit(study, [cell], OPTIONS, None)
    assert not cell.folder.exists()


@pytest.mark.parametrize(
    ("options", "version", "told"),
    [
        ({"source": "https://x"}, {}, "flavor"),
        (OPTIONS | {"region": "eu"}, {}, "--hf_jobs.region"),
        (OPTIONS, {"modified": True}, "Commit and push"),
        (OPTIONS | {"source": "git@example.org:code"}, {}, "https address"),
    ],
)
def test_what_cannot_work_is_one_sentence_and_no_job(jobs_hub, tmp_path, monkeypatch, options, version, told):
    monkeypatch.setattr(hf_jobs, "code_version", lambda: {"commit": COMMIT, "modified": False} | version)
    study = load_study(STUDY, folder=tmp_path / "tiny")
    with pytest.raises(UserError, match=told):
        hf_jobs.submit(study, study.cells[:1], options, None)
    assert jobs_hub.jobs == []


def test_a_report_is_published_as_a_static_space(jobs_hub):
    address = publish_space(
        "user/ranking", 'a "title"', {"report.html": "<p>page", "report.md": "# x", "report.json": "{}"}
    )
    assert address == f"{jobs_hub.url}/spaces/user/ranking"
    files = jobs_hub.files("user/ranking")
    assert files["index.html"] == b"<p>page"
    assert b'title: "a \\"title\\""\nsdk: static' in files["README.md"]
    assert set(files) == {"index.html", "report.md", "report.json", "README.md"}
    jobs_hub.forbid = True
    with pytest.raises(UserError, match="could not be published"):
        publish_space("user/other", "t", {"report.html": "", "report.md": ""})
