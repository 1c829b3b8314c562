"""The commands of `ovseg NAME ...`, and how a command that fails ends."""

import os
import sys
from contextlib import suppress

from ovseg.cli import compare, data, experiments, runs, serve
from ovseg.cli.parser import Command, call_command, summarise
from ovseg.core.errors import InputError, system_reason
from ovseg.core.registry import choose
from ovseg.core.text import printable
from ovseg.core.trust import FLAG, trusting

COMMANDS: dict[str, Command] = {
    "train": runs.train,
    "adapt": runs.adapt,
    "evaluate": runs.evaluate,
    "infer": runs.infer,
    "postprocess": runs.postprocess,
    "export": runs.export,
    "serve": serve.serve,
    "cross_validate": experiments.cross_validate,
    "sweep": experiments.sweep,
    "prepare_data": data.prepare_data,
    "audit_data": data.audit_data,
    "make_phantoms": data.make_phantoms,
    "measure_leakage": data.measure_leakage,
    "draw_augmentations": data.draw_augmentations,
    "import_baseline": compare.import_baseline,
    "compare": compare.compare,
    "compare_baseline": compare.compare_baseline,
    "benchmark": compare.benchmark,
}


# As either of its two spellings becomes below.
_FLAG_SPELT = FLAG.replace("-", "_")


def main(argv: list[str] | None = None) -> int:
    """Run `ovseg NAME ...`.

    A user's mistake is one line on standard error, without a traceback.

    Args:
        argv: the command's name and its arguments; those of this process by default.

    Returns:
        The exit code: 0; 1 where some files failed or a dataset has leaks; 2 for a user's mistake
        or a file that can't be read or written; 130 after Ctrl-C and 143 after SIGTERM.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = [argument for argument in given if argument.replace("-", "_") != _FLAG_SPELT]
    try:
        with trusting(len(arguments) < len(given)):
            code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as error:
        _tell_end("Ctrl-C", error)
        return 130
    except BrokenPipeError:
        # The reader of our output, such as `head`, has ended.
        _drop_output()
        return 1
    except _lightning_exception("SIGTERMException") as error:
        # Lightning itself would exit with 0.
        _tell_end("SIGTERM", error)
        return 143
    except (InputError, UnicodeDecodeError) as error:
        return _refuse(error)
    except _lightning_exception("MisconfigurationException") as error:
        return _refuse(error)
    except OSError as error:
        return _refuse_file(error)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    name = arguments[0]
    if name == "--version":
        from ovseg import __version__

        print(f"ovseg {__version__}")
        return 0
    command = choose("command", name.replace("-", "_"), COMMANDS)
    try:
        return call_command(command, arguments[1:])
    except SystemExit as error:
        if error.code == 0 and type(error) is SystemExit:
            return 0  # the parser printed its help
        raise


def _tell_end(by: str, error: BaseException) -> None:
    """Print what ended a command, and what the command itself says about that."""
    line = f"error: stopped by {by}"
    if str(error):
        line += f". {error}"
    print(printable(line), file=sys.stderr)


def _refuse(error: BaseException) -> int:
    with suppress(OSError):  # standard error may be a file on a full disk
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
    return 2


def _refuse_file(error: OSError) -> int:
    """What the system refuses, such as to write on a full disk, is no fault of the program."""
    try:
        sys.stdout.flush()
    except OSError:  # standard output itself is a file on that disk
        _drop_output()
    text = f"{system_reason(error)}."
    if error.filename is not None:
        text = f"Cannot read or write {os.fsdecode(error.filename)}: {text}"
    return _refuse(InputError(text))


def _drop_output() -> None:
    """Let standard output lead nowhere, so that Python's own flush at the end does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:{width}}  {summarise(command)}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ovseg NAME ...",
            "",
            "Segment ovarian tumours in ultrasound images.",
            "",
            *lines,
            "",
            "`ovseg NAME --help` lists the options of a command. Each also takes --trust_config,",
            "which lets a configuration or a checkpoint name code of other packages.",
        ]
    )


def _lightning_exception(name: str) -> tuple[type[BaseException], ...]:
    """An exception class of Lightning, or nothing where Lightning has not been imported.

    Its import takes seconds, in which Ctrl-C must work already.
    """
    module = sys.modules.get("pytorch_lightning.utilities.exceptions")
    if module is None:
        return ()
    return (getattr(module, name),)
