"""Text of files that may be damaged or a stranger's, on its way to a terminal, a page or a spreadsheet."""

PERMIT = "change its owner or its permissions"  # what to do about a file or folder that may not be read or written
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # what begins a formula in a spreadsheet


def printable(text: str) -> str:
    """Replace control characters, which a terminal would obey, and lone surrogates, which can't be encoded."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def printable_lines(text: str) -> str:
    """The same for text of several lines."""
    return "\n".join(map(printable, text.split("\n")))


def one_line(error: BaseException) -> str:
    """An error's text on a single line."""
    if isinstance(error, OSError) and error.filename is not None:
        return printable(f"{error.filename}: {error.strerror}")
    return printable(" ".join(str(error).split())) or type(error).__name__


def spreadsheet_cell(text: str) -> str:
    """Text that a spreadsheet shows as it is: an apostrophe keeps it from being computed as a formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def spoken_time(hours: float) -> str:
    """A time of training in words: 45 s, 2.9 minutes, 3.5 hours."""
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.1f} minutes" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"
