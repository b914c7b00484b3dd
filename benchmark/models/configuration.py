"""What a segmentation model is made of: its encoder, its head, its crop and how its pixels are normalised."""

from transformers import PretrainedConfig


class SegmentationConfig(PretrainedConfig):
    """Configuration of a `SegmentationModel`.

    Args:
        encoder: timm's name of a vision transformer, or hf-hub:org/model.
        head: a name in `heads.HEADS`.
        head_options: keyword arguments of the head, such as num_queries; its defaults where they are left out.
        crop_size: height and width, in pixels, of what the model sees at once.
        patch_size: side of a patch in pixels; the pretrained embedding is resampled to it.
        image_mean, image_std: three floats each, for pixels in [0, 1].
        freeze_encoder: train the head alone.
        seed: keys the random points of the Mask2Former loss.
        encoder_source: of an encoder on the Hub its "architecture" in timm and its "model_args"; the model fills it in,
            so that a saved model never needs the encoder's repository.
        class_weights: one number a class, which its pixels weigh in the loss of a linear head; None: 1 each.
        colors: one [red, green, blue] (0..255) a class, for pictures.
        id2label, label2id, num_labels: as in every HuggingFace configuration.
    """

    model_type = "vfm_segmentation"

    def __init__(
        self,
        encoder: str = "vit_base_patch16_224",
        head: str = "linear",
        crop_size=(512, 512),
        patch_size: int = 16,
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
        freeze_encoder: bool = False,
        head_options=None,
        seed: int = 0,
        colors=None,
        encoder_source=None,
        class_weights=None,
        **kwargs,
    ):
        num_points = kwargs.pop("num_points", None)  # which older configurations have in place of head_options
        if num_points is not None and head == "mask2former":
            head_options = {"num_points": num_points, **(head_options or {})}
        self.encoder = encoder
        self.head = head
        self.crop_size = list(crop_size)
        self.patch_size = patch_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.freeze_encoder = freeze_encoder
        self.head_options = dict(head_options or {})
        self.seed = seed
        self.colors = None if colors is None else [list(color) for color in colors]
        self.encoder_source = encoder_source
        self.class_weights = None if class_weights is None else list(class_weights)
        self.custom_pipelines = {  # what transformers' `pipeline` takes in place of its own
            "image-segmentation": {
                "impl": "pipeline.SegmentationPipeline",
                "pt": ["AutoModelForSemanticSegmentation"],
                "type": "image",
            }
        }
        super().__init__(**{key: value for key, value in kwargs.items() if key != "custom_pipelines"})
