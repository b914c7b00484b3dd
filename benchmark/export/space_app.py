"""A page that labels an image: `python app.py` here, or a Space on the Hub."""

from pathlib import Path

import gradio
import numpy as np
from transformers import pipeline

MODEL = "model"  # the folder beside this file, or user/name on the Hub
LONGEST = 2048  # pixels of an image's longer side, above which it is made smaller

folder = Path(__file__).parent / MODEL
segment = pipeline("image-segmentation", model=str(folder) if folder.is_dir() else MODEL, trust_remote_code=True)
config = segment.model.config


def label(image):
    """The image, and the mask of each class in it, the largest first."""
    if image.mode.startswith(("I", "F")):  # which conversion would cut
        raise gradio.Error("The image has more than 8 bits a channel, whose range is not known: convert it to 8 bits.")
    image = image.convert("RGB")
    image.thumbnail((LONGEST, LONGEST))
    regions = [(np.asarray(region["mask"]) / 255, region["label"]) for region in segment(image)]
    return image, sorted(regions, key=lambda region: -region[0].mean())


page = gradio.Interface(
    label,
    gradio.Image(type="pil", image_mode=None, label="image"),
    gradio.AnnotatedImage(
        label="classes",
        color_map={config.id2label[c]: "#{:02x}{:02x}{:02x}".format(*rgb) for c, rgb in enumerate(config.colors or ())},
    ),
    title=f"{config.num_labels} classes, by {config.encoder} with a {config.head} head",
    description="Each pixel gets one of the classes that the model was trained on; it has none for anything else.",
    flagging_mode="never",
)

if __name__ == "__main__":
    page.launch()
