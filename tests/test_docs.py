"""Links, commands, names and examples of the README and docs/ are right."""

import contextlib
import importlib
import importlib.util
import io
import json
import re
import shlex
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image

from ovseg.cli.main import COMMANDS
from ovseg.core.configs import list_configs
from ovseg.core.trust import FLAG
from support import REPOSITORY

README = REPOSITORY / "README.md"
GUIDES = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]
# The changelog also names commands and files that are gone.
PAGES = [*GUIDES, REPOSITORY / "CHANGELOG.md"]
SECTIONS = (
    "model.",
    "data.",
    "trainer.",
    "early_stopping.",
    "best_checkpoint.",
    "ema.",
    "adaptation.",
)
# Of files called `model`, which are no keys of a configuration.
MODEL_SUFFIXES = (".bin", ".json", ".onnx", ".safetensors", ".xml")
FOLDERS = ("ovseg/", "tests/", "scripts/", "configs/", "docs/", ".ci/")


def read_tokens(page: Path) -> list[Token]:
    """All tokens of a page, those inside paragraphs and tables too."""
    parser = MarkdownIt("commonmark").enable("table")
    tokens = []
    for token in parser.parse(page.read_text(encoding="utf-8")):
        tokens.append(token)
        tokens += token.children or []
    return tokens


def list_links(page: Path) -> list[str]:
    """The targets of links and pictures that are in the repository."""
    links = []
    for token in read_tokens(page):
        target = token.attrGet("href") or token.attrGet("src")
        if target and "://" not in str(target):
            links.append(str(target))
    return links


def list_anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    tokens = read_tokens(page)
    anchors = set()
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            text = inline.content.replace("`", "").lower()
            anchors.add(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    return anchors


def list_code(page: Path) -> list[str]:
    """The inline code of a page."""
    return [token.content for token in read_tokens(page) if token.type == "code_inline"]


def list_fences(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    tokens = read_tokens(page)
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


def list_command_lines(page: Path) -> list[list[str]]:
    """The words of every command line in code blocks and inline code."""
    lines = [code for code in list_code(page) if code.startswith("ovseg ")]
    for block in list_fences(page, "bash"):
        lines += block.replace("\\\n", " ").splitlines()
    command_lines = []
    for line in lines:
        for part in line.split("&&"):
            command_lines.append(shlex.split(part, comments=True))
    return command_lines


def list_commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """(name, arguments) of every `ovseg NAME ...` and `scripts/NAME.py ...` of a page."""
    for words in list_command_lines(page):
        for place, word in enumerate(words):
            rest = words[place + 1 :]
            if word.startswith("scripts/"):
                yield Path(word).stem, rest
            elif word == "ovseg" and rest and rest[0] != "NAME" and not rest[0].startswith("-"):
                yield rest[0], rest[1:]
                break  # a peer of the benchmark is called ovseg too


def list_keys(page: Path) -> list[str]:
    """The configuration keys of a page, such as `data.classes`, in commands and in inline code."""
    keys = []
    for code in list_code(page):
        name = code.removeprefix("--")
        key = re.split(r"[ :=]", name)[0]
        if key.startswith(SECTIONS) and Path(key).suffix not in MODEL_SUFFIXES:
            keys.append(key)
    for _, arguments in list_commands(page):
        keys += [word[2:] for word in arguments if word.startswith("--") and "." in word]
    return keys


@pytest.fixture(scope="module")
def options(run_command: Callable[..., int]) -> dict[str, set[str]]:
    """Name of a command -> the options that its --help lists."""
    found = {}
    for name in COMMANDS:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            assert run_command(name, "--help") == 0
        found[name] = {FLAG, *re.findall(r"(?<![\w-])--[\w.]+", output.getvalue())}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page):
    missing = []
    for link in list_links(page):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in list_anchors(target)):
            missing.append(link)

    assert missing == []


def test_every_page_and_picture_of_docs_is_linked():
    linked = set()
    for page in GUIDES:
        for link in list_links(page):
            linked.add((page.parent / link.partition("#")[0]).resolve())

    files = {path for path in (REPOSITORY / "docs").iterdir() if path.suffix in (".md", ".png")}
    assert files - linked == set()


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page, options):
    unknown = []
    for name, arguments in list_commands(page):
        if name not in COMMANDS:
            unknown.append(name)
            continue
        for word in arguments:
            option = word.partition("=")[0]
            if option.startswith("--") and "." not in option and option not in options[name]:
                unknown.append(f"{name} {option}")

    assert unknown == []


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_options_named_in_the_text_exist(page, options):
    known = set().union(*options.values())
    named = {re.split(r"[ =]", code)[0] for code in list_code(page) if code.startswith("--")}

    assert {option for option in named if "." not in option} - known == set()


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_configuration_keys_exist(page, options):
    unknown = []
    for key in list_keys(page):
        section, _, name = key.partition(".")
        # Below a key such as model.optimizer_args are the arguments of what it names.
        known = f"--{section}.{name.partition('.')[0]}"
        if known not in options["adapt"]:  # it has those of `train` too
            unknown.append(key)

    assert unknown == []


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_configurations_named_in_commands_are_shipped(page):
    unknown = []
    for _, arguments in list_commands(page):
        for option, value in pairwise(arguments):
            if option != "--config" or value.startswith("runs/") or value.endswith(".config"):
                continue
            if value not in list_configs() and not (REPOSITORY / value).is_file():
                unknown.append(value)

    assert unknown == []


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_files_named_in_text_and_commands_exist(page):
    names = list_code(page)
    for words in list_command_lines(page):
        names += words

    missing = []
    for name in names:
        is_path = name.startswith(FOLDERS) and not set(name) & set("<>* ")
        if is_path and not (REPOSITORY / name).exists():
            missing.append(name)
    assert missing == []


def test_tables_that_a_new_part_is_added_to_exist():
    text = (REPOSITORY / "docs" / "development.md").read_text(encoding="utf-8")
    tables = re.findall(r"`([A-Z_]+)` in\s`(ovseg/[\w/]+)\.py`", text)
    assert len(tables) >= 8

    missing = []
    for table, path in tables:
        module = importlib.import_module(path.replace("/", ".").removesuffix(".__init__"))
        if not hasattr(module, table):
            missing.append(f"{table} in {path}.py")
    assert missing == []


def test_every_package_is_described():
    development = REPOSITORY / "docs" / "development.md"
    described = set(list_code(development))
    packages = [path.parent for path in (REPOSITORY / "ovseg").glob("*/__init__.py")]
    assert len(packages) >= 10

    names = {f"ovseg/{package.name}/" for package in packages}
    assert names - described == set()


def test_every_command_is_documented():
    documented = set()
    for page in GUIDES:
        documented |= {name for name, _ in list_commands(page)}

    assert set(COMMANDS) - documented == set()


def test_every_configuration_is_described():
    linked = set(list_links(REPOSITORY / "docs" / "training.md"))
    shipped = {f"../configs/{path.name}" for path in (REPOSITORY / "configs").glob("*.yaml")}

    assert shipped - linked == set()


def load_script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "docs" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture
def fold_data(phantom_root, run_command, tmp_path) -> Path:
    """A dataset of three folds without test images."""
    folders = ["--images", phantom_root / "train/images", "--masks", phantom_root / "train/masks"]
    data = tmp_path / "data"
    fractions = ["--fractions", "0.8,0.2,0", "--folds", "3"]
    assert run_command("prepare_data", *folders, "--output", data, "--size", "64", *fractions) == 0
    return data


def test_script_of_guided_scores_scores_the_fold(fold_data, make_run, tmp_path, capsys):
    run = make_run(tmp_path / "run")
    table = load_script("guided_scores").main(run, fold_data, 1)
    assert 0 < len(table) < len(json.loads((fold_data / "manifest.json").read_text())["items"])
    # Ends of the reference tell more than a network that has hardly been trained.
    assert table["the ellipse of 2 ends alone"].mean() > 0.7
    assert table["the ellipse of 4 ends alone"].mean() > 0.8
    assert (table["the network with 4 ends"] > table["the network alone"]).all()
    assert "the network with 4 ends: Dice 0." in capsys.readouterr().out


def test_plain_script_writes_masks_of_the_fold_at_their_size(fold_data, tmp_path, monkeypatch):
    monkeypatch.setattr("ovseg.models.encoder_weights.load_encoder", lambda *_: None)
    script = load_script("plain_smp")
    script.WORKERS = 0
    script.main(fold_data, 1, tmp_path / "masks", 0.001)

    items = json.loads((fold_data / "manifest.json").read_text())["items"]
    held_out = [item for item in items if item["fold"] == 1]
    assert {path.stem for path in (tmp_path / "masks").iterdir()} == {i["stem"] for i in held_out}
    for item in held_out:
        with Image.open(tmp_path / "masks" / f"{item['stem']}.png") as mask:
            assert mask.size == (item["width"], item["height"])


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_python_examples_run_as_written(page, make_run, save_png, tmp_path, monkeypatch):
    examples = list_fences(page, "python")
    if not examples:
        pytest.skip("no example in Python on this page")
    make_run(tmp_path / "runs" / "demo" / "version_0")
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    for name in ("image", "a", "b", "my_images/c"):
        save_png(tmp_path / f"{name}.png", image)
    monkeypatch.chdir(tmp_path)

    for example in examples:
        exec(compile(example, page.name, "exec"), {})

    if page == README:
        with Image.open("overlay.png") as overlay:
            assert overlay.size == (56, 40)
