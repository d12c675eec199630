"""Entry point: pins the numeric libraries, runs the app, turns errors into messages and exit codes."""

from __future__ import annotations

import sys
import traceback

from nx46vx.errors import EXIT_INTERRUPTED_TWICE, NX46Error, from_os_error
from nx46vx.runtime.numeric import pin_threads


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    pin_threads()
    from nx46vx.cli.app import app

    try:
        code = int(app(arguments, standalone_mode=False) or 0)
        if code == EXIT_INTERRUPTED_TWICE:  # typer's own name for a Ctrl-C that no one handled: the first one
            raise KeyboardInterrupt
        return code
    except NX46Error as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 3
    except OSError as error:
        fault = from_os_error(error, "the run")
        print(f"{type(fault).__name__}: {fault}", file=sys.stderr)
        return fault.exit_code
    except MemoryError:
        print("EnvironmentFault: out of memory. Fix: lower features.block or features.workers.", file=sys.stderr)
        return 7
    except Exception as error:
        show = getattr(error, "show", None)
        if callable(show):  # the argument parser's own errors, whichever parser typer brings
            show(file=sys.stderr)
            return 2
        traceback.print_exc()
        print("This is a fault of the program itself. The run directory can be continued.", file=sys.stderr)
        return 1


def entry() -> None:
    """The console script."""
    sys.exit(main())
