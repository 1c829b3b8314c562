"""The table of commands, the help, and how a command that fails ends."""

import inspect
import os
import re
import resource
import subprocess
import sys

import docstring_parser
import pytest

from ovseg.benchmark.command import WHAT
from ovseg.benchmark.peers import PEERS, PRECISIONS
from ovseg.cli.main import COMMANDS
from ovseg.data.boxes import FITS
from ovseg.data.prepare.dataset import SPLITTERS
from ovseg.evaluation.postprocessing_search import METRICS
from ovseg.inference.engines import ENGINES
from ovseg.inference.model_files import FORMATS as MODEL_FORMATS
from ovseg.inference.results import FORMATS as RESULT_FORMATS
from support import REPOSITORY

# Options whose help lists the names of a table.
TABLES = [
    ("infer", "engine", ENGINES),
    ("infer", "format", RESULT_FORMATS),
    ("export", "format", MODEL_FORMATS),
    ("postprocess", "metric", METRICS),
    ("benchmark", "peers", PEERS),
    ("benchmark", "precision", PRECISIONS),
    ("benchmark", "what", WHAT),
    ("prepare_data", "fit", FITS),
    ("prepare_data", "split", SPLITTERS),
]
SCRIPTS = ("train", "evaluate", "infer", "prepare_data", "compare_baseline")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command_with_a_line(arguments, run_command, capsys):
    assert run_command(*arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in COMMANDS:
        described = [line for line in lines if line.startswith(f"  {name} ")]
        assert len(described) == 1
        assert len(described[0].split()) > 3


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_every_command_describes_all_its_options(name, run_command, capsys):
    command = COMMANDS[name]
    docstring = docstring_parser.parse(inspect.getdoc(command))
    described = [parameter.arg_name for parameter in docstring.params]
    assert described == list(inspect.signature(command).parameters)
    assert run_command(name, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: ovseg {name} ")


@pytest.mark.parametrize(("command", "option", "table"), TABLES)
def test_help_of_an_option_lists_the_names_of_its_table(command, option, table):
    docstring = docstring_parser.parse(inspect.getdoc(COMMANDS[command]))
    [text] = [entry.description for entry in docstring.params if entry.arg_name == option]
    words = set(re.findall(r"\w+", text))
    assert words >= set(table)


def test_name_of_a_command_is_that_of_its_function():
    assert list(COMMANDS) == [command.__name__ for command in COMMANDS.values()]


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_is_the_command_of_its_name(name):
    assert f'main(["{name}", ' in (REPOSITORY / "scripts" / f"{name}.py").read_text()


def test_scripts_are_those_of_the_baseline():
    assert {path.stem for path in (REPOSITORY / "scripts").glob("*.py")} == set(SCRIPTS)


def test_unknown_command_lists_the_commands(run_command, capsys):
    assert run_command("fly") == 2
    assert "Unknown command 'fly'. Choose one of: adapt, audit_data, " in capsys.readouterr().err


def test_version_is_that_of_the_package(run_command, capsys):
    import ovseg

    assert run_command("--version") == 0
    assert capsys.readouterr().out == f"ovseg {ovseg.__version__}\n"


def test_command_may_be_written_with_dashes(run_command, capsys):
    assert run_command("prepare-data", "--source", "gone") == 2
    assert "required: output" in capsys.readouterr().err


def test_mistake_is_one_line_without_a_traceback(run_command, tmp_path, capsys):
    arguments = ["--source", tmp_path / "gone", "--output", tmp_path / "d"]
    assert run_command("prepare_data", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert str(tmp_path / "gone") in error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "a.csv"), "Cannot read or write a.csv: No space "),
        (OSError(28, "No space left on device"), "No space left on device."),
    ],
)
def test_what_the_system_refuses_is_one_line(monkeypatch, run_command, capsys, error, line):
    def refuse(*, output: str) -> int:
        """Refuse."""
        raise error

    monkeypatch.setitem(COMMANDS, "refuse", refuse)
    assert run_command("refuse", "--output", "x") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {line}")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_standard_output_on_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "ovseg", "--version"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2
    assert result.stderr == "error: No space left on device.\n"


def test_full_disk_keeps_the_earlier_output(tmp_path):
    output = tmp_path / "phantoms"
    command = [sys.executable, "-m", "ovseg", "make_phantoms", "--output", str(output)]
    options = ["--size", "64", "--count", "12"]
    subprocess.run([*command, *options], check=True)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    result = subprocess.run(
        [*command, *options, "--seed", "1", "--overwrite"],
        preexec_fn=limit_files,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert re.fullmatch(r"error: Cannot write .*: File too large.\n", result.stderr)
    assert before == {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert [path.name for path in tmp_path.iterdir()] == ["phantoms"]


def test_phantoms_are_made(run_command, tmp_path, capsys):
    assert (
        run_command("make_phantoms", "--output", tmp_path / "p", "--count", 10, "--size", 32) == 0
    )
    assert capsys.readouterr().out == f"10 phantoms in {tmp_path / 'p'}\n"


def test_reader_that_goes_away_ends_a_command_quietly():
    command = [sys.executable, "-m", "ovseg", "--help"]
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment)
    os.close(writing)
    assert (result.returncode, result.stderr) == (1, b"")


@pytest.mark.parametrize("statement", ["import ovseg", "import ovseg.cli.main"])
def test_import_takes_no_heavy_package(statement):
    code = f"{statement}; import sys; print(sorted(sys.modules.keys() & {{'torch', 'pandas'}}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n"
