"""``python -m pwconv``: the configuration, the demo and the benchmark."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pwconv
from pwconv.commands import bench, demo


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status of the process."""
    parser = argparse.ArgumentParser(prog="python -m pwconv", description="Pointwise (1x1) convolution on the CPU.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("config", help="print the configuration; so does no command at all")
    demo_parser = commands.add_parser("demo", help="the two uses at work, checked against NumPy and timed beside it")
    demo_parser.add_argument(
        "image",
        nargs="?",
        help="a picture: its label map and its reconstruction are written next to it; skimage:coffee is a photograph "
        "of scikit-image's, whose files go to the current folder",
    )
    demo_parser.add_argument(
        "--composite",
        type=Path,
        metavar="FILE",
        help="write the picture, its labels and three of its principal components side by side",
    )
    # Listed here for --help; the benchmark's own parser reads the words that follow.
    commands.add_parser("bench", help="race the installed peers on the layers of published networks", add_help=False)

    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["bench"]:
        return bench.main(words[1:])
    arguments = parser.parse_args(words)
    if arguments.command == "demo":
        if arguments.composite and not arguments.image:
            demo_parser.error("argument --composite: name a picture, too")
        return demo.main(arguments.image, arguments.composite)
    pwconv.show_config()
    return 0


if __name__ == "__main__":
    # A file name may have characters that the terminal's encoding lacks.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output closed it. The interpreter flushes stdout once more at exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
