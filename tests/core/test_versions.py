import torch

from ovseg.core.versions import installed_versions


def test_packages_that_are_not_installed_are_left_out():
    versions = installed_versions(["torch", "no-such-package-of-ovseg"])
    assert versions == {"torch": torch.__version__.split("+")[0]}
