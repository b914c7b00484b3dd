"""Sums of a folder's files, by which a file that changed since is noticed: of checkpoints and of models.

manifest.json says each file's size and sha256, whatever else its writer knows, and ends with its own sha256.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


class Damaged(Exception):
    """A folder's files are not what was written; the message says which, in words."""


def entry(data: bytes) -> dict[str, Any]:
    """What a manifest says about a file that holds `data`."""
    return {"size": len(data), "sha256": _sha256(data)}


def encode_manifest(about: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The bytes of a manifest: `about`, then each file's entry, then its own sha256."""
    return json.dumps(seal({**about, "files": files}), indent=1).encode()


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the sha256 of their JSON as the last entry, by which `is_intact` knows them again."""
    plain = {key: value for key, value in values.items() if key != "sha256"}
    return {**plain, "sha256": _sha256(json.dumps(plain).encode())}


def is_intact(sealed: Mapping[str, Any]) -> bool:
    """Whether values are those that were sealed."""
    return seal(sealed) == sealed


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a folder's manifest says, without its own sum; raises Damaged."""
    try:
        data = (folder / MANIFEST).read_bytes()
        manifest = json.loads(data)
        del manifest["sha256"]
        same = encode_manifest({k: v for k, v in manifest.items() if k != "files"}, manifest["files"]) == data
    except FileNotFoundError:
        raise Damaged(f"{MANIFEST} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{MANIFEST} cannot be read ({error})") from None
    if not same:
        raise Damaged(f"{MANIFEST} is not what was written (its sha256 differs)")
    return manifest


def read_files(folder: Path, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """The content of each file that a manifest names; raises Damaged where one is not what was written."""
    files = {}
    for name, expected in manifest["files"].items():
        try:
            data = (folder / name).read_bytes()
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None
        except OSError as error:
            raise Damaged(f"{name} cannot be read ({error.strerror})") from None
        if len(data) != expected["size"]:
            raise Damaged(f"{name} has {len(data)} bytes in place of {expected['size']}")
        if _sha256(data) != expected["sha256"]:
            raise Damaged(f"{name} is not what was written (its sha256 differs)")
        files[name] = data
    return files


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
