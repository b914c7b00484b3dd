import json

import numpy as np

from benchmark.tracking import cut_back, panel


def test_cutting_back_drops_later_lines_and_a_torn_one(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "train/loss": step / 3}) + "\n" for step in (2, 4, 4, 6)]
    file.write_text("".join(lines) + '{"step": 6, "tra')
    cut_back(file, 6)
    assert file.read_text() == "".join(lines)
    cut_back(file, 4)
    assert file.read_text() == "".join(lines[:3])
    cut_back(file, 0)
    assert file.read_text() == ""


def test_a_panel_shows_image_label_and_prediction_in_the_classes_colours():
    image = np.full((3, 256, 256), 100, np.uint8)
    label = np.zeros((40, 40), np.uint8)
    label[:20] = 255
    prediction = np.ones((40, 40), np.uint8)
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    picture = panel(image, label, prediction, ["car", "tree", "sky"], colors)
    row = picture[8 + 22 + 200]  # below the title, in the lower half
    assert tuple(row[8 + 128]) == (100, 100, 100)
    assert tuple(row[8 + 264 + 128]) == (200, 0, 0)
    assert tuple(row[8 + 2 * 264 + 128]) == (0, 200, 0)
    assert tuple(picture[8 + 22 + 50][8 + 264 + 128]) == (0, 0, 0)  # ignored
    legend = picture[8 + 22 + 256 :].reshape(-1, 3)
    assert (legend == (200, 0, 0)).all(1).any() and (legend == (0, 200, 0)).all(1).any()
    assert not (legend == (0, 0, 200)).all(1).any()  # a class that does not occur is not in the legend
