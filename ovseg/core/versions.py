"""Versions of installed packages, for reports."""

import importlib.metadata
from collections.abc import Iterable


def module_versions(modules: Iterable[str]) -> dict[str, str]:
    """Name on PyPI -> version of the installed packages that the modules are imported from."""
    distributions = importlib.metadata.packages_distributions()
    packages: list[str] = []
    for module in modules:
        packages += distributions.get(module, [])
    return installed_versions(packages)


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Name -> version of those of the packages that are installed, by their names on PyPI."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
