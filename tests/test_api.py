"""The names that `ovseg` itself has."""

import os
import subprocess
import sys

import pytest

import ovseg


@pytest.mark.parametrize("name", ovseg.__all__)
def test_public_name_is_imported_on_demand(name):
    assert getattr(ovseg, name).__name__ == name


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Predicter'"):
        ovseg.Predicter  # noqa: B018


def test_import_asks_torch_for_huge_pages():
    environment = dict(os.environ)
    environment.pop("THP_MEM_ALLOC_ENABLE", None)
    code = "import ovseg, os; print(os.environ['THP_MEM_ALLOC_ENABLE'])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
