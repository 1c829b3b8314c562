"""Runs `ovseg` commands in forks of one process, which has imported all that takes seconds.

It reads a line of JSON a command from standard input and answers with a line of JSON:
`{"arguments", "folder", "log", "kill_after", "file_limit", "temporary"}` gives
`{"code", "seconds"}`.
`code` is -9 for a command that was killed.
"""

import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback

import torch

import ovseg.audit.report
import ovseg.data.prepare.dataset
import ovseg.experiments.train
import ovseg.inference.export  # noqa: F401
from ovseg.cli.main import main

torch.set_num_threads(1)  # threads do not live on in forks


def run(task: dict) -> int:
    """Run a command in this process; what it prints goes to a file."""
    os.chdir(task["folder"])
    os.setsid()
    if task["temporary"]:
        os.environ["TMPDIR"] = task["temporary"]
        tempfile.tempdir = None
    output = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if task["file_limit"]:
        limit = task["file_limit"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = ["ovseg", *task["arguments"]]
    try:
        code = main(task["arguments"])
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        sys.stdout.flush()
    except OSError:
        code = code or 120
    return code


def serve() -> None:
    for line in sys.stdin:
        task = json.loads(line)
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            os._exit(run(task))
        if task["kill_after"] is not None:
            time.sleep(task["kill_after"])
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps({"code": code, "seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    serve()
