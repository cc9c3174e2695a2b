"""The one command: `rtdecode ...`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from importlib.metadata import entry_points

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit code.

    0: done. 1: ran and failed. 2: could not start (every problem is listed).
    """
    for name in THREAD_VARIABLES:  # before numpy loads: several pools on few cores are far slower than one thread
        os.environ.setdefault(name, "1")
    from zmq import ZMQError

    from rtdecode import commands
    from rtdecode.client import RequestError
    from rtdecode.errors import BundleError, RtdecodeError, SettingsError
    from rtdecode.version import __version__

    parser = argparse.ArgumentParser(prog="rtdecode", description="Real-time fMRI decoding.")
    parser.add_argument("--version", action="version", version=f"rtdecode {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log every step")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.register(subparsers)
    for point in sorted(entry_points(group="rtdecode.commands"), key=lambda p: p.name):
        point.load()(subparsers)
    args = parser.parse_args(argv)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if args.verbose else logging.INFO, handlers=[handler])
    for noisy in ("numba", "matplotlib", "PIL", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        code = int(args.handler(args))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (SettingsError, BundleError) as error:
        print(f"rtdecode: cannot start:\n{_indented(error)}", file=sys.stderr)
        return 2
    except (RtdecodeError, RequestError, OSError, ZMQError) as error:
        print(f"rtdecode: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


class _OneLine(logging.Formatter):
    """A message is one line, whatever a file name in it holds; tracebacks keep theirs."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that logging calls
        record.message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in record.message)
        return super().formatMessage(record)


def _indented(error: Exception) -> str:
    return "\n".join(f"  {line}" for line in str(error).splitlines())


if __name__ == "__main__":
    sys.exit(main())
