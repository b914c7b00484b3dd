"""What is found in folders of images and labels: it is named as it was meant, or it is asked for."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from data_scripts.archive_formats import Reader
from data_scripts.errors import DatasetError
from data_scripts.inspection.draft_recipe import draft_recipe
from data_scripts.inspection.folders import Found, inspect_folders

SIZE = (12, 20)


def stripes(*values: int) -> np.ndarray:
    """A label map of vertical stripes."""
    return np.resize(np.repeat(values, SIZE[1] // len(values) + 1)[: SIZE[1]], SIZE).astype(np.uint8)


def save(path: Path, image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)


def write(root: Path, labels, count: int = 3) -> None:
    """Images and equal label maps."""
    for number in range(count):
        save(root / "images" / f"{number}.jpg", np.zeros((*SIZE, 3), np.uint8))
        save(root / "labels" / f"{number}.png", labels)


def look(root: Path, images: str = "images", labels: str = "labels", **suffixes: str) -> Found:
    with Reader() as reader:
        return inspect_folders({"train": (str(root / images), str(root / labels))}, reader, suffixes)


def named(root: Path) -> dict[int, str]:
    """The class of each stored value of the recipe; 'ignored' for none."""
    found = look(root)
    custom, _ = draft_recipe(found)
    mapping = custom.get("label_mapping") or {value: value for value in range(len(custom["classes"]))}
    classes = dict(enumerate(custom["classes"]))
    return {value: classes.get(mapping.get(value, 255), "ignored") for value in found.values}


GRASS = {0: "grass", 1: "car", 2: "person"}


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("classes.txt", "grass\ncar\nperson", GRASS),
        ("classes.txt", "grass\ncar\nperson\n", {1: "grass", 2: "car", 3: "person"}),
        ("classes.txt", "sky\ngrass\ncar\nperson\n", {1: "grass", 3: "person", 255: "ignored"}),
        ("classes.txt", "grass\ncar\n", {0: "grass", 128: "car", 255: "ignored"}),
        ("classes.txt", "grass\ncar\nperson\n", {0: "grass", 128: "car", 255: "person"}),
        ("classes.txt", "no crack\ncrack", {0: "no crack", 255: "crack"}),
        ("classes.txt", "2 person\n0 grass\n1 car", GRASS),
        ("classes.txt", "Klasse;Nummer\ngrass;0\nperson;2\ncar;1", GRASS),
        ("classes.csv", "grass,0\ncar,1\nperson,2", GRASS),
        ("classes.csv", "0,grass,9,9,9\n1,car,8,8,8\n2,person,7,7,7", GRASS),
        ("classes.csv", "name\ngrass\ncar\nperson", GRASS),
        ("classes.csv", "Name,ID\ngrass,0\nperson,2\ncar,1", GRASS),
        ("classes.csv", "id,label\n0,grass\n2,person\n1,car", GRASS),
        ("classes.csv", "class\tname\n0\tgrass\n2\tperson\n1\tcar", GRASS),
        ("classes.csv", 'class,label\ngrass,0\n"person",2\ncar,1', GRASS),
        ("classes.csv", "class_name,class_index\nperson,2\ncar,1\ngrass,0", GRASS),  # a title that is not known
        ("classes.csv", "name,id\nperson,2.0\ncar,1.0\ngrass,0.0", GRASS),  # as pandas writes it
        ("classes.csv", "id,name,r,g,b\n0,grass,9,9,9\n2,person,8,8,8\n1,car,7,7,7", GRASS),
        ("classes.csv", "name,r,g,b,id\nego,0,0,0,-1\ngrass,9,9,9,0\nperson,8,8,8,2\ncar,7,7,7,1", GRASS),
        ("classes.csv", "name,red,green,blue\ngrass,0,0,0\ncar,9,9,9", {0: "class 0", 1: "class 1"}),
    ],
)
def test_a_class_file_names_the_values_that_it_means(file, text, expected, tmp_path):
    write(tmp_path, stripes(*expected))
    (tmp_path / file).write_text(text)
    assert named(tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "values", "words"),
    [
        ("car\nperson", (0, 1, 2), r"has 2 name\(s\), and none for the label value\(s\) 2: give it a line for each"),
        ("grass\ncar", (1, 2, 3, 255), r"none for the label value\(s\) 2, 3: "),
        ("car", (0, 255), r"none for the label value\(s\) 255: "),
        ("10 car\n11 person", (0, 1), r"none for the label value\(s\) 0, 1: "),
        ("0 grass\ncar\n2 person", (0, 1, 2), "2 lines with a number in front and 1 without: write"),
        ("0 grass\n0 car\n2 person", (0, 1, 2), "names a label value twice: correct"),
        ("id,name\n0,grass\n1,car\n1,person", (0, 1, 2), "names a label value twice: correct"),
        (
            "id,name\n0,grass\n,car\n2,person",
            (0, 1, 2),
            r"no column in which each row has its label value \(id\): name",
        ),
        ("0 grass\n1 car", (0, 1, 2, 3), r"none for the label value\(s\) 2, 3: "),
    ],
)
def test_a_class_file_that_does_not_fit_stops(text, values, words, tmp_path):
    """The names would be those of other values."""
    write(tmp_path, stripes(*values))
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DatasetError, match=words) as error:
        look(tmp_path)
    assert "classes.txt" in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "labels.txt").write_text("\n".join(f"{value} name" for value in values))  # one that fits
    if words.startswith(("has 2", "none")):
        assert look(tmp_path).names_from == "labels.txt"


def test_the_class_file_that_is_nearest_to_the_data_counts(tmp_path):
    write(tmp_path / "data", stripes(0, 1, 2))
    (tmp_path / "data/classes.txt").write_text("grass\ncar\nperson")
    (tmp_path / "classes.txt").write_text("cat\ndog\nbird")
    assert named(tmp_path / "data") == GRASS


def test_a_colour_table_names_colours_whatever_the_order_of_its_columns(tmp_path):
    colors = np.array([[0, 0, 0], [0, 0, 255], [200, 30, 30]], np.uint8)
    write(tmp_path, colors[stripes(0, 1, 2)])
    (tmp_path / "classes.csv").write_text("r;g;b;id;name\n200;30;30;7;red\n0;0;255;8;blue\n0;0;0;9;ground")
    assert draft_recipe(look(tmp_path))[0]["classes"] == ["ground", "blue", "red"]


@pytest.mark.parametrize("values", [(0, 128, 255), (0, 100, 200, 255), (2, 3, 255), (0, 1, 3, 255)])
def test_255_beside_numbers_that_are_not_in_a_row_is_asked_for(values, tmp_path):
    """As for masks of 0 and 255: the program cannot know."""
    write(tmp_path, stripes(*values))
    found = look(tmp_path)
    with pytest.raises(DatasetError, match=f"hold {values[0]}, .* and 255, so 255 may be a class.*add --data") as error:
        draft_recipe(found)
    assert "\n" not in str(error.value)
    without, with_it = (draft_recipe(found, {"ignore_id": ignore_id})[0] for ignore_id in (255, None))
    assert without["label_mapping"] == {v: 255 if v == 255 else i for i, v in enumerate(values)}
    assert with_it["label_mapping"] == {v: i for i, v in enumerate(values)}
    assert [len(custom["classes"]) for custom in (without, with_it)] == [len(values) - 1, len(values)]


@pytest.mark.parametrize("values", [(0, 255), (1, 255), (0, 1, 255), (1, 2, 3, 255)])
def test_255_beside_numbers_in_a_row_is_assumed_as_before(values, tmp_path):
    write(tmp_path, stripes(*values))
    custom, notes = draft_recipe(look(tmp_path))
    assert (custom.get("ignore_id") == 255) == (values != (0, 255)) and any("Assumed" in note for note in notes)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("file", "lines"), [("classes.txt", ["0 Gräser", "1 car"]), ("classes.csv", ["name", "Gräser", "car"])]
)
def test_a_class_file_may_be_written_on_windows(file, lines, encoding, tmp_path):
    write(tmp_path, stripes(0, 1))
    (tmp_path / file).write_bytes("\r\n".join(lines).encode(encoding))
    assert named(tmp_path) == {0: "Gräser", 1: "car"}


@pytest.mark.parametrize(
    "text",
    ["[1, 2, 3]", "{broken", "", "3", '{"classes": 3}', '{"classes": ["a"]}', '{"classes": [{"color": "#000000"}]}'],
)
def test_a_json_of_another_tool_is_no_class_file(text, tmp_path):
    write(tmp_path, np.array([[0, 0, 0], [200, 30, 30]], np.uint8)[stripes(0, 1)])
    (tmp_path / "meta.json").write_text(text)
    found = look(tmp_path)
    assert found.names == {} and draft_recipe(found)[0]["classes"] == ["color 0,0,0", "color 200,30,30"]


COLORS = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)


def palette_map(array: np.ndarray) -> Image.Image:
    image = Image.fromarray(array)
    image.putpalette(COLORS.flatten().tolist())
    return image


@pytest.mark.parametrize("odd", ["0", "2"])
def test_palette_maps_among_colours_are_colours(odd, tmp_path):
    """They are the same pixels: three classes, each with a third more than in two of three."""
    write(tmp_path, palette_map(stripes(0, 1, 2)))
    values = {
        r << 16 | g << 8 | b: 3 * int((stripes(0, 1, 2) == i).sum()) for i, (r, g, b) in enumerate(COLORS.tolist())
    }
    save(tmp_path / "labels" / f"{odd}.png", COLORS[stripes(0, 1, 2)])
    found = look(tmp_path)
    assert found.kind == "colors" and found.values == values and not found.problems
    write(tmp_path, palette_map(stripes(0, 1, 2)))
    assert look(tmp_path).kind == "palette"


def test_numbers_among_colours_are_problems(tmp_path):
    """A gray level is no colour, so the fewer files are named, all of them."""
    write(tmp_path, COLORS[stripes(0, 1, 2)], 5)
    for number in (1, 3):
        save(tmp_path / "labels" / f"{number}.png", stripes(0, 1, 2))
    found = look(tmp_path)
    assert found.kind == "colors" and len(found.values) == 3 and len(found.problems) == 2
    for number, problem in zip((1, 3), found.problems, strict=True):
        assert problem.startswith(f"{number}.png in ") and "holds numbers and others RGB colours: store" in problem


def test_a_photo_that_exif_turns_is_to_be_turned_and_not_its_labels_resized(tmp_path):
    write(tmp_path, stripes(0, 1, 2))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", SIZE).save(tmp_path / "images/1.jpg", exif=exif)  # stored with the sides exchanged
    (problem,) = look(tmp_path).problems
    assert "1.png" in problem and "turned by its EXIF" in problem and "mogrify -auto-orient" in problem


def test_what_cannot_be_paired_is_said_as_it_is(tmp_path):
    write(tmp_path, stripes(0, 1))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in sorted(tmp_path.glob("*/*")):
            archive.write(file, file.relative_to(tmp_path))
    for places, words in (
        (("all.zip", "all.zip"), "all.zip holds the folders images, labels: let .* such as .*all.zip/images"),
        (("all.zip/images", "all.zip/masks"), "all.zip/masks holds no label map that ends in .png"),
        (("images", "images"), "images holds no label map that ends in .png"),
        (("labels", "labels"), "by its name .such as 0.png and"),
        (("images", "label"), "label does not exist, but labels is in "),
    ):
        with pytest.raises(DatasetError, match=words) as error:
            look(tmp_path, *places)
        assert "\n" not in str(error.value)
    for number in range(3):
        (tmp_path / "labels" / f"{number}.png").rename(tmp_path / "labels" / f"{number + 5}.png")
    with pytest.raises(DatasetError, match=r"No image in .* belongs to .*set --data\.custom\.image_suffix"):
        look(tmp_path)


def test_the_suffixes_of_the_command_line_are_not_guessed(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.a.png", np.zeros((*SIZE, 3), np.uint8))
        save(tmp_path / f"{number}.b.png", stripes(0, 1))
    found = look(tmp_path, "", "", image_suffix=".a.png", label_suffix=".b.png")
    assert len(found.pairs["train"]) == 3 and set(found.values) == {0, 1} and not found.problems
    assert draft_recipe(found)[0]["label_suffix"] == ".b.png"
