import torch

from ovseg.core.versions import installed_versions, module_versions


def test_packages_that_are_not_installed_are_left_out():
    versions = installed_versions(["torch", "no-such-package-of-ovseg"])
    assert versions == {"torch": torch.__version__.split("+")[0]}


def test_version_of_a_module_is_that_of_its_package():
    assert list(module_versions(["cv2", "no_such_module"])) == ["opencv-python-headless"]
