"""A folder that is a gradio Space: app.py, requirements.txt, README.md, and the model where it is not on the Hub."""

import json
import shutil
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from benchmark.reporting.results import PACKAGE

GRADIO = "6.0.0"  # the oldest version that app.py is made for
NEEDED = ("numpy", "pillow", "timm", "torch", "transformers")  # beside gradio: as this project asks for them
CARD = """---
title: {title}
sdk: gradio
sdk_version: {gradio}
app_file: app.py
pinned: false
---

Labels the pixels of an image with {model}. Here: `pip install -r requirements.txt && python app.py`. As a Space:
`hf upload user/name . --repo-type space`.
"""


def write_space(output: Path, model: Path, name: str) -> None:
    """Write the Space to the folder `output`.

    Args:
        model: the model's folder.
        name: as the user called it; a model on the Hub is not copied.
    """
    output.mkdir(parents=True, exist_ok=True)
    app = Path(__file__).with_name("space_app.py").read_text()
    local = Path(name).is_dir()
    if local:
        shutil.copytree(model, output / "model", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.onnx*", "space"))
    else:
        app = app.replace('MODEL = "model"', f"MODEL = {json.dumps(name)}")
    title = Path(name).resolve().name if local else name.split("/")[-1]
    about = {"model": "the model in `model/`" if local else f"[{name}](https://huggingface.co/{name})"}
    (output / "app.py").write_text(app)
    (output / "requirements.txt").write_text("\n".join([f"gradio>={GRADIO}", *_requirements()]) + "\n")
    (output / "README.md").write_text(CARD.format(title=json.dumps(title), gradio=GRADIO, **about))


def _requirements() -> list[str]:
    try:
        lines = requires(PACKAGE) or []
    except PackageNotFoundError:  # a checkout that is not installed
        lines = list(NEEDED)
    return sorted(line for line in lines if line.split(">")[0] in NEEDED and "extra ==" not in line)
