"""The command line: one verb, one call, a file for each group of verbs. Heavy imports stay inside the verb, so that `--help`
is quick.

Results go to standard output (with --json, nothing else does), progress to standard error. Exit status 0 done, 1 failed
while working, 2 refused before starting, 130 interrupted, 143 stopped (SIGTERM) and saved.
"""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from lmlab import __version__
from lmlab.cli import claims, corpus, model, runs, scale, tokenizer, use  # noqa: F401  each adds its verbs
from lmlab.cli.common import app
from lmlab.errors import Failed, LmlabError, Stopped
from lmlab.ranks import leave, rank

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: errors of ours are one message, not a traceback."""
    try:
        app()
    except SystemExit as end:
        leave(end.code)
    except Stopped as stop:
        if rank() == 0:
            print(stop, file=sys.stderr, flush=True)
        leave(stop.exit_status)
    except LmlabError as error:
        if rank() == 0 or isinstance(error, Failed):
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(20)  # rank 0 refuses the same and says so, unless a launcher that saw this one end has ended it
        leave(error.exit_status)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"lmlab {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
