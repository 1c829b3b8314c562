"""What a page shows, read without a browser."""

from html.parser import HTMLParser


class PageText(HTMLParser):
    """The tables and the text of a page.

    Attributes:
        tables: the page's tables by their first heading, each a list of rows of cells.
        text: all that can be read, with single blanks.
    """

    def __init__(self, page: str):
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self.skipped = 0
        self.cell: list[str] | None = None
        self.feed(page)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def table(self, *headings: str) -> list[list[str]]:
        """The rows below the headings of the table that begins with these headings."""
        for rows in self.tables:
            if tuple(rows[0][: len(headings)]) == headings:
                return rows[1:]
        raise AssertionError(f"The page has no table with the headings {headings}.")

    def handle_starttag(self, tag, attrs):
        if tag in ("style", "script"):
            self.skipped += 1
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = []

    def handle_endtag(self, tag):
        if tag in ("style", "script"):
            self.skipped -= 1
        elif tag in ("td", "th"):
            self.tables[-1][-1].append(" ".join(" ".join(self.cell).split()))
            self.cell = None

    def handle_data(self, data):
        if self.skipped:
            return
        self.words.append(data)
        if self.cell is not None:
            self.cell.append(data)
