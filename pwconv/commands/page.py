"""The text that commands print: plain ASCII, no wider than the terminal or 80 columns.

Other characters are avoided because some terminals show a multiplication sign two columns wide.
"""

import shutil
import textwrap


def terminal_width() -> int:
    """Return how many columns there are, at most 80."""
    return min(shutil.get_terminal_size().columns, 80)


def say(text: str) -> None:
    print(textwrap.fill(text, terminal_width(), break_long_words=False), end="\n\n")


def heading(text: str) -> None:
    print(text, "-" * len(text), sep="\n")


def table(*groups: list[dict[str, str]]) -> None:
    """The first column to the left, the others to the right; where that is too wide, a few lines for each row."""
    rows = [row for group in groups for row in group]
    first, *others = rows[0]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    if sum(widths.values()) + 2 * len(others) <= terminal_width():

        def show(row: dict[str, str]) -> None:
            print(row[first].ljust(widths[first]), *(row[name].rjust(widths[name]) for name in others), sep="  ")

        show({name: name for name in rows[0]})
    else:

        def show(row: dict[str, str]) -> None:
            # No-break spaces, until the lines are filled: a name stays with its value.
            cells = "; ".join(f"{name} {row[name]}".replace(" ", "\xa0") for name in others)
            filled = textwrap.fill(cells, terminal_width() - 4, break_on_hyphens=False).replace("\xa0", " ")
            print(row[first], textwrap.indent(filled, " " * 4), sep="\n")

    for group in groups:
        for row in group:
            show(row)
        print()


def duration(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
