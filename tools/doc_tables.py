"""Tables of docs/*.md that a program writes: below a mark, <!-- table: NAME -->, to be replaced and to be checked."""
import re
import sys


def markdown(header, rows):
    return "\n".join(["| " + " | ".join(header) + " |", "|" + "---|" * len(header)] +
                     ["| " + " | ".join(row) + " |" for row in rows])


def number(value):
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}"


def filled(path, made):
    """The page at `path` with every table of `made` {name: table} in its place."""
    page = path.read_text()
    for name, table in made.items():
        mark = re.compile(rf"(<!-- table: {re.escape(name)} -->\n)(?:\|.*\n)*")
        page, count = mark.subn(lambda found: found[1] + table + "\n", page)
        if count != 1: sys.exit(f"{path}: expected one place for the table '{name}', found {count}")
    return page


def stale(wanted, root):
    """A line for every (path, text) of `wanted` where the file does not have the text."""
    return [f"{path.relative_to(root)}: is not what this program writes; run it with --update"
            for path, text in wanted if not path.exists() or path.read_text() != text]
