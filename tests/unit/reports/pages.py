"""A reader of HTML pages for the tests."""

from html.parser import HTMLParser

VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """Collects what the tests look at and checks that the tags nest."""

    def __init__(self, html: str):
        super().__init__()
        self.html = html
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if "style" in self.stack:
            return
        self.text += data
        if self.stack and self.cells and {"td", "th"} & set(self.stack):
            self.cells[-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def of_class(self, name):
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]

    def assert_self_contained(self) -> None:
        """No tag loads anything from elsewhere, and the page forbids it."""
        for _, attributes in self.tags:
            for name in ("src", "href", "srcset", "data", "action", "xlink:href", "poster"):
                target = attributes.get(name)
                assert target is None or target.startswith(("data:image/", "#")), target
        assert not any(self.all(tag) for tag in ("script", "link", "iframe", "object", "embed"))
        style = self.html[self.html.index("<style>") : self.html.index("</style>")]
        assert "url(" not in style and "@import" not in style
        assert "default-src 'none'" in self.html

    def cells_at(self, text: str) -> int:
        """Where in the page the table cell with this text begins."""
        return self.html.index(f">{text}</")
