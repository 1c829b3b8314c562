"""Configurations by name, and that a wheel has what the clone has."""

import tomllib
from pathlib import Path

import pytest

from ovseg.core.configs import (
    changed_settings,
    find_config,
    flatten,
    list_configs,
    resolve_configs,
    short_name,
    shorten_configs,
)
from ovseg.core.errors import InputError
from support import REPOSITORY


def test_every_configuration_of_the_clone_has_a_name():
    folder = REPOSITORY / "configs"
    files = {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")}
    assert {"unet", "mmotu/unet"} <= files
    assert set(list_configs()) == files


def test_configurations_in_folders_are_found_and_have_runs_of_their_own():
    path = find_config("mmotu/unet")
    assert path == REPOSITORY / "configs" / "mmotu" / "unet.yaml"
    assert short_name(path) == "mmotu_unet"
    assert short_name(find_config("unet")) == "unet"
    assert short_name(Path("elsewhere/mine.yaml")) == "mine"


def test_path_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("unet") == list_configs()["unet"]
    (tmp_path / "unet").write_text("model: {}")
    assert find_config("unet") == Path("unet")


def test_unknown_configuration_lists_the_names():
    with pytest.raises(InputError, match=r"no configuration umet.*demo, .*unet"):
        find_config("umet")


def test_only_names_after_config_become_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unet = str(list_configs()["unet"])
    arguments = ["--config", "unet", "--model.arch", "unet", "--config=unet", "-c", "a.yaml"]
    expected = ["--config", unet, "--model.arch", "unet", f"--config={unet}", "-c", "a.yaml"]
    assert resolve_configs(arguments) == expected
    assert shorten_configs(expected) == arguments


def test_wheel_has_every_package_and_the_configurations():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = [path.parent for path in (REPOSITORY / "ovseg").rglob("__init__.py")]
    packages = [".".join(folder.relative_to(REPOSITORY).parts) for folder in folders]
    assert sorted(settings["packages"]) == sorted([*packages, "ovseg.configs"])
    assert settings["package-dir"] == {"ovseg.configs": "configs"}
    folders = {path.parent for path in list_configs().values()} - {REPOSITORY / "configs"}
    patterns = ["*.yaml", *(f"{folder.name}/*.yaml" for folder in folders)]
    assert sorted(settings["package-data"]["ovseg.configs"]) == sorted(patterns)


def test_flat_settings_have_dotted_keys():
    nested = {"a": {"b": {"c": 1}, "d": [2]}, "e": {}, "f": None}
    assert flatten(nested) == {"a.b.c": 1, "a.d": [2], "e": {}, "f": None}


def test_changed_settings_are_named_with_both_values():
    earlier = {"data": {"batch_size": 4}, "seed": 1}
    now = {"data": {"batch_size": 8}, "seed": 1, "new": True}
    assert changed_settings(earlier, now) == "data.batch_size 4, now 8, new None, now True"
    assert changed_settings(now, now) == ""
