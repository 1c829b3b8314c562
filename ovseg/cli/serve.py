"""The command that opens a web page."""

from pathlib import Path

from ovseg.cli.output import conclude
from ovseg.core.errors import InputError


def serve(
    *,
    run: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    queue: int = 16,
    max_mb: int = 50,
) -> int:
    """Open a web page, on this machine, that segments pictures; programs can use it too.

    Nothing is stored: pictures stay in memory. Ctrl-C stops it.

    Args:
        run: run folder, checkpoint, folder of an ensemble, or a file of `ovseg export`
            (default: the model that comes with ovseg)
        host: address to be reached by; 0.0.0.0 lets other machines in, without a password
        port: of the address; 0 for any free one
        device: auto (the GPU, if any), cpu, cuda, cuda:1, mps, ...
        queue: how many pictures may wait or be in work
        max_mb: largest file in MB
    """
    try:
        from ovseg.serve import server
    except ModuleNotFoundError as error:
        raise InputError(
            f"serve needs the package {error.name}: pip install 'ovseg[serve]'."
        ) from None

    server.serve(run, host, port, device, queue, max_mb)
    return conclude("Stopped.")
