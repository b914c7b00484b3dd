"""Colour jitter, batched on the device: torchvision's adjust_* functions, for all images of a batch at once.

Every image has its own factors and its own order, and neither reaches the host: an operation that is not applied to an
image gets its neutral factor. Grey values are whole numbers, and their sums stay below 2**24, so that float32 holds
them exactly in any order of summing: an image comes out the same in every batch.
"""

import torch

# torchvision's weights of red, green and blue (ITU-R BT.601).
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)
# Where torchvision turns floats in [0, 1] into uint8 it multiplies by 255 + 1 - 1e-3 and truncates.
FLOAT_TO_UINT8 = 255.999 / 255


def color_jitter(
    pixel_values: torch.Tensor, thumbnails: torch.Tensor, jitter: torch.Tensor, sizes: torch.Tensor
) -> torch.Tensor:
    """Jitter uint8 (B, 3, H, W) `pixel_values` in 0..255 and return the same; the padding comes back as 0.

    jitter: float (B, 5): factors of brightness, contrast and saturation (1 changes nothing), the turn of hue in
    [-0.5, 0.5] (0 changes nothing), and 1 where contrast comes before saturation and hue, 0 where it comes after.
    thumbnails: uint8 (B, 3, h, w), pixels of the whole image, of which contrast takes its mean.
    sizes: integer (B, 2), height and width of what is not padding, from the top left corner.
    """
    brightness, contrast, saturation, hue, contrast_first = jitter.float()[:, :, None, None, None].unbind(1)
    early_contrast = torch.where(contrast_first > 0, contrast, 1.0)
    late_contrast = torch.where(contrast_first > 0, 1.0, contrast)

    pixels, thumbs = (adjust_brightness(images.float(), brightness) for images in (pixel_values, thumbnails))
    mean = mean_gray(thumbs)
    pixels, thumbs = (blend(images, mean, early_contrast) for images in (pixels, thumbs))
    pixels, thumbs = (adjust_saturation(images, saturation) for images in (pixels, thumbs))
    pixels, thumbs = (adjust_hue(images, hue) for images in (pixels, thumbs))
    pixels = blend(pixels, mean_gray(thumbs), late_contrast)
    return torch.where(inside(sizes, pixels.shape[-2:]), pixels, 0.0).to(torch.uint8)


def adjust_brightness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Scale (B, 3, H, W) floats that hold uint8 values."""
    return (images * factor).clamp(0, 255).floor()


def adjust_saturation(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend (B, 3, H, W) floats that hold uint8 values with their grey."""
    return blend(images, gray(images), factor)


def adjust_hue(images: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Turn the hue of (B, 3, H, W) floats that hold uint8 values, through HSV and back.

    Back by the closed form: a channel is V - C * clamp(min(k, 4 - k), 0, 1), with k = (n + 6 H) mod 6 and n = 5, 3, 1
    for red, green and blue (https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative).
    """
    red, green, blue = images.unbind(1)
    value, chroma = images.amax(1), images.amax(1) - images.amin(1)
    divisor = chroma.clamp(min=1)  # of a grey pixel, whose hue does not matter
    sextant = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    turned = sextant + 6 * turn[:, 0]
    channels = []
    for offset in (5, 3, 1):
        k = (turned + offset).remainder(6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    adjusted = (torch.stack(channels, dim=1) * FLOAT_TO_UINT8).clamp(0, 255).floor()
    return torch.where(turn == 0, images, adjusted)


def blend(images: torch.Tensor, others: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    """ratio * images + (1 - ratio) * others, as whole numbers in 0..255."""
    return (images * ratio + others * (1 - ratio)).clamp(0, 255).floor()


def gray(images: torch.Tensor) -> torch.Tensor:
    """(B, 1, H, W) grey of (B, 3, H, W), truncated as torchvision does before it takes a mean."""
    red, green, blue = images.split(1, dim=1)
    return (red * GRAY_WEIGHTS[0] + green * GRAY_WEIGHTS[1] + blue * GRAY_WEIGHTS[2]).floor()


def mean_gray(images: torch.Tensor) -> torch.Tensor:
    """(B, 1, 1, 1) mean grey of (B, 3, H, W)."""
    return gray(images).mean(dim=(1, 2, 3), keepdim=True)


def inside(sizes: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """bool (B, 1, H, W): True where an image's own pixels are, False where its padding is."""
    rows, columns = (torch.arange(length, device=sizes.device) for length in shape)
    height, width = sizes[:, None, None, 0:1], sizes[:, None, None, 1:2]
    return (rows[:, None] < height) & (columns < width)
