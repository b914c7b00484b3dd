"""COCO-Stuff 164k: COCO's photos with 80 things and 91 kinds of stuff (Caesar, Uijlings and Ferrari, CVPR 2018)."""

from typing import ClassVar

from data_scripts.builder import SegmentationBuilder
from data_scripts.labels import IGNORE, LabelRule, default_colors
from data_scripts.listing import Download, Files

# labels.txt of github.com/nightrome/cocostuff: ids from 1 on.
LABELS = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, street sign,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, hat, backpack,
umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
baseball glove, skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon, bowl, banana,
apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, mirror,
dining table, window, desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster,
sink, refrigerator, blender, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, hair brush, banner,
blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth,
clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other,
floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel, ground-other,
hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow,
plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea, shelf,
sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table, tent, textile-other, towel,
tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other,
waterdrops, window-blind, window-other, wood
"""
# Things that COCO names and never annotated (README of the same repository, "Label Names & Indices").
ABSENT = (
    "blender",
    "desk",
    "door",
    "eye glasses",
    "hair brush",
    "hat",
    "mirror",
    "plate",
    "shoe",
    "street sign",
    "window",
)
STORED = {name.strip(): value for value, name in enumerate(LABELS.split(","))}  # a label map holds id - 1
NAMES = tuple(name for name in STORED if name not in ABSENT)
IMAGES, PAGE = "http://images.cocodataset.org/zips/", "https://github.com/nightrome/cocostuff#downloads"


class Builder(SegmentationBuilder):
    """Splits train2017 and val2017; 255 is unlabelled. The authors publish no palette."""

    classes = NAMES
    colors = default_colors(len(NAMES))
    downloads = (
        Download("train2017.zip", IMAGES + "train2017.zip"),
        Download("val2017.zip", IMAGES + "val2017.zip"),
        Download("stuffthingmaps_trainval2017.zip", PAGE),
    )
    counts: ClassVar = {"train": 118287, "validation": 5000}
    pairs: ClassVar = {
        "train": [(Files(0, "train2017/", ".jpg"), Files(2, "train2017/", ".png"))],
        "validation": [(Files(1, "val2017/", ".jpg"), Files(2, "val2017/", ".png"))],
    }
    rule = LabelRule({STORED[name]: train_id for train_id, name in enumerate(NAMES)} | {255: IGNORE})
