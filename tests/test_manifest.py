import json

import pytest

from ovseg.data.manifest import check_manifest, image_categories, read_manifest
from ovseg.errors import InputError


def write(root, content: object) -> None:
    (root / "manifest.json").write_text(json.dumps(content))


def test_tree_without_a_manifest_knows_no_categories(tmp_path):
    assert read_manifest(tmp_path) == {} and image_categories(tmp_path, "test") == {}
    check_manifest(tmp_path, "letterbox", classes=1)


@pytest.mark.parametrize("text", ["[", "[]", "3"])
def test_foreign_manifest_is_an_error(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="is not the JSON that prepare_data writes"):
        read_manifest(tmp_path)


def test_categories_of_a_split_by_name(tmp_path):
    items = [
        {"stem": "1", "split": "test", "category": 2},
        {"stem": "2", "split": "test", "category": 0},
        {"stem": "3", "split": "train", "category": 1},
        {"stem": "4", "split": "test"},
    ]
    write(tmp_path, {"categories": ["a", "b"], "items": items})
    assert image_categories(tmp_path, "test") == {"1": "b", "2": "none"}
