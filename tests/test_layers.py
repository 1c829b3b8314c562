"""The house: a module imports only from lower layers, heavy packages stay in one module each, files stay short."""

import ast

import pytest
from conftest import REPOSITORY

# Every module and its layer; within a layer, later ones may import earlier ones.
LAYERS = [
    [
        *("errors", "files", "settings", "run_folder", "progress", "plots", "drawing"),
        *("data.geometry", "data.pairs", "data.manifest", "data.original", "data.tree"),
        *("data.sector", "data.ultrasound", "data.calipers", "data.transforms", "data.phantoms"),
        *("data.duplicates", "data.splits", "models.layers", "models.unet"),
        *("models.attention_unet", "models.multires_unet", "models.unet3plus"),
        *("models.swin_unet", "models.efficient_unet", "models.deeplabv3plus"),
        *("models.encoder_weights", "models.pretrained"),
        *("metrics", "losses", "optim", "schedules", "keras_unet"),
    ],
    ["data.prepare", "data.cache", "data.loading", "data.datamodule", "models", "models.keras_weights"],
    ["export", "engines", "task", "averaging", "callbacks", "checkpoint_io", "checkpoints", "decision", "inference"],
    [
        *(
            "evaluation",
            "report",
            "tuning",
            "run_export",
            "out_of_fold",
            "leakage",
            "baseline_config",
            "baseline_import",
        ),
        *("compare_training", "compare_masks", "benchmark_data", "augmentation_sheet"),
        *("audit_files", "audit", "audit_report"),
        *("benchmark_peers", "benchmark", "benchmark_layers", "benchmark_report", "benchmark_command"),
    ],
    [
        "training_checks",
        "training",
        "subtraining",
        "cross_validation",
        "sweep",
        "cli_parser",
        "cli_data",
        "cli_studies",
        "cli",
        "__main__",
    ],
]
RANK = {name: rank for rank, name in enumerate(name for layer in LAYERS for name in layer)}
ONLY_IN = {
    "albumentations": "data.transforms",
    "imagehash": "data.duplicates",
    "segmentation_models_pytorch": "models.pretrained",
    "jinja2": "audit_report",
    "h5py": "models.keras_weights",
    "tensorflow": "keras_unet",
    "keras": "keras_unet",
    "onnxscript": "export",
    "onnxruntime": "engines",
    "openvino": "engines",
    "monai": "benchmark_peers",
    "optuna": "sweep",
}


def module_name(path) -> str:
    return ".".join(path.relative_to(REPOSITORY / "ovseg").with_suffix("").parts).removesuffix(".__init__")


def imports_of(path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}


MODULES = {
    module_name(path): path
    for path in sorted((REPOSITORY / "ovseg").rglob("*.py"))
    if module_name(path) not in ("__init__", "data")
}


def test_every_module_has_a_layer():
    assert set(MODULES) == set(RANK)


@pytest.mark.parametrize("name", RANK)
def test_module_imports_only_lower_ones(name):
    inside = {n.removeprefix("ovseg.") for n in imports_of(MODULES[name]) if n.startswith("ovseg.")}
    assert all(RANK[other] < RANK[name] for other in inside)


@pytest.mark.parametrize("name", RANK)
def test_data_models_and_task_meet_only_in_the_batch(name):
    forbidden = {"data": "models", "models": "data", "task": "data"}.get(name.split(".")[0], "-")
    assert not [n for n in imports_of(MODULES[name]) if n.startswith(f"ovseg.{forbidden}")]


@pytest.mark.parametrize("package", ONLY_IN)
def test_heavy_package_is_imported_in_one_module(package):
    users = [name for name, path in MODULES.items() if package in {n.split(".")[0] for n in imports_of(path)}]
    assert users == [ONLY_IN[package]]


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("ovseg/**/*.py")), ids=lambda p: p.name)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            assert not body or body[-1].end_lineno - body[0].lineno < 40, node.name


def test_scripts_are_thin():
    for path in REPOSITORY.glob("scripts/*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 15, path.name
