"""Names of strangers, such as those of files, made safe to show."""

FORMULA_STARTS = ("=", "+", "-", "@")  # of a cell that a spreadsheet program would compute


def printable(text: object) -> str:
    r"""A text with all that can't be shown, or that a terminal would obey, as an escape.

    These are control characters (colours, line breaks), marks that turn the direction of writing,
    and bytes of a file name that are not UTF-8: `\x1b`, `\u202e`, `\udcff`.
    """
    characters = str(text)
    if characters.isprintable():
        return characters

    shown = []
    for character in characters:
        if character.isprintable():
            shown.append(character)
        else:
            shown.append(character.encode("unicode_escape").decode("ascii"))
    return "".join(shown)


def table_cell(value: object) -> object:
    """A cell of a CSV file: a text is printable, and `'` stands before what would be a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    if text.startswith(FORMULA_STARTS):
        return f"'{text}"
    return text
