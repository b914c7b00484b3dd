import numpy as np
import pytest
from PIL import Image, ImageFont

from benchmark.reporting.pictures import (
    OVERLAY_SIDE,
    confusion_picture,
    draw_labels,
    overlay,
    panel,
    stack_panels,
)
from data_scripts.labels import default_colors

COLORS = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
CLASSES = ["car", "tree", "sky"]


def occurs(picture, color) -> bool:
    return bool((np.asarray(picture).reshape(-1, 3) == color).all(1).any())


def test_a_panel_shows_image_label_and_prediction_in_the_classes_colours():
    image = np.full((3, 256, 256), 100, np.uint8)
    label = np.zeros((40, 40), np.uint8)
    label[:20] = 255
    prediction = np.ones((40, 40), np.uint8)
    picture = panel(image, label, prediction, CLASSES, COLORS)
    above = len(picture) - 8 - 50 - 384 - 8  # the title's line, which is as high as one of the legend
    row = picture[above + 300]  # in the lower half
    assert tuple(row[8 + 192]) == (100, 100, 100)
    assert tuple(row[8 + 392 + 192]) == (200, 0, 0)
    assert tuple(row[8 + 2 * 392 + 192]) == (0, 200, 0)
    assert tuple(picture[above + 75][8 + 392 + 192]) == (0, 0, 0)  # ignored
    legend = picture[above + 384 :]
    assert occurs(legend, (200, 0, 0)) and occurs(legend, (0, 200, 0))
    assert not occurs(legend, (0, 0, 200))  # a class that does not occur is not in the legend


@pytest.mark.parametrize("shape", [(1024, 2048), (48, 64)])
def test_a_panels_legend_can_be_read_where_it_is_shown_400_pixels_wide(shape):
    """As in TensorBoard's grid: a box of the legend has the height of a letter, at least 10 pixels there."""
    label = np.zeros(shape, np.uint8)
    picture = panel(np.full((3, *shape), 100, np.uint8), label, label, CLASSES, COLORS)
    legend = (picture[-60:] == COLORS[0]).all(-1)
    assert legend.any(1).sum() * 400 / picture.shape[1] >= 10


def test_stacked_panels_are_one_below_the_other():
    stacked = stack_panels([np.zeros((3, 5, 3), np.uint8), np.ones((2, 7, 3), np.uint8)])
    assert stacked.shape == (5, 7, 3)
    assert (stacked[:3, :5] == 0).all() and (stacked[:3, 5:] == 255).all() and (stacked[3:] == 1).all()


def test_a_label_image_holds_the_labels_and_their_colours(tmp_path):
    labels = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
    draw_labels(labels, COLORS).save(tmp_path / "x.png")
    read = Image.open(tmp_path / "x.png")
    assert read.mode == "P"
    np.testing.assert_array_equal(np.asarray(read), labels)
    assert read.convert("RGB").getpixel((1, 0)) == COLORS[1]


def test_an_overlay_blends_image_and_colours_and_names_what_occurs():
    image = Image.new("RGB", (300, 300), (100, 100, 100))
    labels = np.zeros((300, 300), np.uint8)
    labels[:100] = 2
    picture = np.asarray(overlay(image, labels, CLASSES, COLORS))
    assert tuple(picture[8 + 250, 150]) == (150, 50, 50) and tuple(picture[8 + 50, 150]) == (50, 50, 150)
    legend = picture[8 + 300 :]
    assert occurs(legend, (200, 0, 0)) and occurs(legend, (0, 0, 200)) and not occurs(legend, (0, 200, 0))


def test_an_overlay_has_a_size_to_look_at():
    for size in ((1, 1), (5000, 40), (4000, 3000)):
        picture = overlay(Image.new("RGB", size), np.zeros(size[::-1], np.uint8), CLASSES, COLORS)
        assert 256 <= max(picture.size) <= OVERLAY_SIDE + 200


def test_default_colours_differ():
    assert len({tuple(color) for color in default_colors(150)}) == 150


def test_a_confusion_picture_is_dark_where_labels_are_predicted_so():
    # The second label is rare beside the first: its row counts for itself.
    confusion = np.array([[900, 100, 0], [0, 5, 5], [0, 0, 0]])
    picture = confusion_picture(confusion, CLASSES).astype(int)
    cell = 44
    left = int(ImageFont.load_default(14).getlength("tree")) + 2 * 8 + 22
    top = picture.shape[0] - 8 - 3 * 44
    brightness = [[picture[top + r * cell + 4, left + c * cell + 4].sum() for c in range(3)] for r in range(3)]
    order = np.argsort(np.array(brightness).ravel(), kind="stable")
    assert order[0] == 0 and {order[1], order[2]} == {4, 5} and order[3] == 1
    assert brightness[2] == [3 * 255] * 3  # a class without labels
    assert confusion_picture(np.eye(150, dtype=np.int64), [f"a class {c}" for c in range(150)]).shape[0] < 2400
