"""A made-up report of a study, as report.json holds it, from a seed."""

from itertools import combinations
from typing import Any

import numpy as np

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
NAMES = ["default", "frozen", "short", "large", "mask2former", "patch8", "cityscapes", "camvid"]
ENCODERS = ["dinov2", "dinov3", "eva02", "eva02_clip", "siglip2", "sam", "mae", "deit3_in21k", "beit3", "pe_spatial"]


def made_up_report(
    settings: int = 2, encoders: int = 5, classes: int = 12, seeds: int = 3, seed: int = 0
) -> dict[str, Any]:
    """Scores from a seeded generator. Ranks, intervals and differences follow from them, the rest is random."""
    random = np.random.default_rng(seed)
    names = [ENCODERS[k] if k < len(ENCODERS) else f"encoder{k}" for k in range(encoders)]
    true = np.sort(random.normal(0.5, 0.03, encoders))[::-1]
    made = [_setting(random, NAMES[k], names, true, classes, seeds) for k in range(settings)]
    pairs = [
        {
            **{"a": b["setting"], "b": a["setting"], "encoders": encoders, "tau": random.uniform(-0.2, 1)},
            **{"tau_interval": [-0.1, 0.97], "p": random.random(), "regret": 0.002, "regret_bound": 0.0213},
            **{"choice": names[0], "cost_ratio": random.uniform(0.2, 0.9)},
        }
        for a, b in combinations(made, 2)
    ]
    return {
        "name": "tiny",
        "versions": {"benchmark": "0.1.0", "commit": None},
        "thresholds": {"tau": 0.6, "regret": 0.01},
        "draws": 10000,
        "answer": ["In setting default, dinov2 is the best with a probability of 0.71; its rank is 1 to 3."],
        "notes": ["eva02 has one seed only in setting frozen."],
        "settings": made,
        "pairs": pairs,
    }


def _setting(random, name: str, encoders: list[str], true, classes: int, seeds: int) -> dict[str, Any]:
    labels = [f"class {k}" for k in range(classes)]
    rows = []
    for encoder, centre in zip(encoders, true, strict=True):
        runs = np.clip(centre + random.normal(0, 0.008, seeds), 0, 1).tolist()
        mean = float(np.mean(runs))
        curve = [
            [step, mean * (1 - 0.6 * 0.5 ** (step / 2000)) + random.normal(0, 0.004)] for step in range(500, 10001, 500)
        ]
        iou = {label: float(np.clip(mean + random.normal(0, 0.2), 0, 1)) for label in labels}
        runs_said = [
            {"seed": k, "mean_iou": score, "folder": f"{name}/{encoder}-seed{k}"} for k, score in enumerate(runs)
        ]
        rows.append(
            {
                **{"encoder": encoder, "model": f"vit_base_patch14_{encoder}.pretrained", "seeds": list(range(seeds))},
                **{"mean_iou": mean, "std": float(np.std(runs, ddof=1)) if seeds > 1 else None},
                **{"interval": [mean - 0.02, mean + 0.02], "best_probability": random.random()},
                **{"parameters": int(random.integers(8e7, 9e7)), "trainable_parameters": 86_123_456},
                **{"gpu_hours": random.uniform(0.5, 9), "images_per_second": random.uniform(20, 90)},
                **{"peak_memory_bytes": 12_345_678_901, "gflops": random.uniform(100, 400)},
                **{"device": "cuda (NVIDIA H100)", "precision": "bf16", "iou": iou, "curve": curve, "runs": runs_said},
                "metrics": {
                    name: {
                        "score": mean,
                        "interval": [mean - 0.02, mean + 0.02],
                        "rank": 1,
                        "rank_set": [1, 2],
                    }
                    for name in ("mean_boundary_iou", "mean_accuracy")
                },
            }
        )
    rows.sort(key=lambda row: -row["mean_iou"])
    for rank, row in enumerate(rows, 1):
        beaten = [
            other for other in rows if other["gpu_hours"] > row["gpu_hours"] or other["mean_iou"] < row["mean_iou"]
        ]
        row |= {"rank": rank, "rank_set": [max(1, rank - 2), min(len(rows), rank + 2)]}
        row["pareto"] = len(beaten) == len(rows) - 1
    differences = [
        {
            **{"better": a["encoder"], "worse": b["encoder"], "difference": (gap := a["mean_iou"] - b["mean_iou"])},
            **{"interval": [gap - 0.02, gap + 0.02], "sure": gap > 0.02},
        }
        for a, b in combinations(rows, 2)
    ]
    return {
        **{"setting": name, "dataset": "shapes", "protocol": "0123456789abcdef", "steps": 10000, "images": 300},
        **{"classes": labels, "rare_classes": 2, "rows": rows, "differences": differences},
        "seed_noise": {"std": 0.008, "degrees_of_freedom": 10, "from": None},
        "missing": [{"encoder": "sam", "seed": 7, "state": "failed", "sentence": "CUDA out of memory."}],
    }


def made_up_pictures(report: dict[str, Any], count: int = 2) -> list[dict[str, Any]]:
    """Pictures of one pixel."""
    return [
        {
            **{"setting": setting["setting"], "name": f"image {k}", "image": PIXEL, "label": PIXEL},
            "predictions": {row["encoder"]: PIXEL for row in setting["rows"]},
        }
        for setting in report["settings"]
        for k in range(count)
    ]
