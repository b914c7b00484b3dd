"""What the tests share: a tiny recipe on the embedded dataset, and a Hub on the loopback."""

import os
import signal
import sys
import time
from pathlib import Path

import joblib
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Of nohup and of a shell's background jobs a process inherits that these are ignored, and would hand it on to the runs.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

TINY = """
data: {train: shapes, val: [shapes], crop_size: 64, num_workers: 0}
model: {encoder: test_vit, patch_size: 16, pretrained: false}
optim: {lr: 1e-3, encoder_lr_multiplier: 1.0}
train:
  {steps: 6, global_batch_size: 4, precision: fp32, compile: false, eval_every: 3, eval_batch_size: 16, log_every: 2,
   checkpoint_every: 3}
"""


DEFAULT = "not slow and not gpu"  # as in setup.cfg
MOST_WORKERS = 4  # each takes 1.5 GB and imports everything once


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The processes of `-n auto`: one for each core, where more than one is of use.

    Slow tests and those on the GPU, which is one for all of them, have the machine to themselves; a file or two are
    sooner done than another process has started.
    """
    files = any(Path(argument.partition("::")[0]).is_file() for argument in config.args)
    workers = min(joblib.cpu_count(), MOST_WORKERS)
    return 0 if files or workers == 1 or config.option.markexpr != DEFAULT else workers


@pytest.fixture(autouse=True)
def same_products():
    """What a test that starts a run in this process sets for products ends with it."""
    yield
    if torch := sys.modules.get("torch"):
        torch.backends.mkldnn.matmul.fp32_precision = "none"
        torch.backends.cuda.enable_flash_sdp(True)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> Path:
    """One datasets cache for all tests, so that the embedded dataset is drawn once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny(tmp_path, cache_dir) -> list[str]:
    """The flags of a run that takes seconds; its folder is tmp_path/run."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY)
    return ["--recipe", str(recipe), "--data.cache_dir", str(cache_dir), "--output.dir", str(tmp_path / "run")]


@pytest.fixture
def hub():
    from hub_server import Hub

    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def online(hub, monkeypatch, tmp_path):
    """This process's huggingface_hub talks to `hub`, logged in, and is patient for milliseconds only."""
    from hub_server import TOKEN
    from huggingface_hub import constants

    files = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": files,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(time, "sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.01)))
    return hub
