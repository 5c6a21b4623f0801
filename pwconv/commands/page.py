"""The text that commands print: ASCII, at most as wide as the terminal and 80 columns.

Other characters are avoided, since some terminals show a multiplication sign two columns wide.
"""

import shutil
import textwrap


def terminal_width() -> int:
    """Return the number of columns to fill, at most 80."""
    return min(shutil.get_terminal_size().columns, 80)


def say(text: str) -> None:
    """Print a paragraph."""
    print(textwrap.fill(text, terminal_width(), break_long_words=False), end="\n\n")


def heading(text: str) -> None:
    """Print an underlined heading."""
    print(text, "-" * len(text), sep="\n")


def table(*groups: list[dict[str, str]]) -> None:
    """Print a table: the first column aligned left, the others right; on a narrow terminal several lines per row."""
    rows = [row for group in groups for row in group]
    first, *others = rows[0]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    if sum(widths.values()) + 2 * len(others) <= terminal_width():

        def show(row: dict[str, str]) -> None:
            print(row[first].ljust(widths[first]), *(row[name].rjust(widths[name]) for name in others), sep="  ")

        show({name: name for name in rows[0]})
    else:

        def show(row: dict[str, str]) -> None:
            # No-break spaces keep a name and its value on one line.
            cells = "; ".join(f"{name} {row[name]}".replace(" ", "\xa0") for name in others)
            filled = textwrap.fill(cells, terminal_width() - 4, break_on_hyphens=False).replace("\xa0", " ")
            print(row[first], textwrap.indent(filled, " " * 4), sep="\n")

    for group in groups:
        for row in group:
            show(row)
        print()


def duration(seconds: float) -> str:
    """Write a time in microseconds or milliseconds."""
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
