"""The names that `ovseg` itself has."""

import pytest

import ovseg


@pytest.mark.parametrize("name", ovseg.__all__)
def test_public_name_is_imported_on_demand(name):
    assert getattr(ovseg, name).__name__ == name


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Predicter'"):
        ovseg.Predicter  # noqa: B018
