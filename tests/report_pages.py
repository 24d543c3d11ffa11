"""A page of HTML, read and asserted to be whole."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Its texts by the innermost element, and its elements; that they nest is asserted."""

    VOID = ("meta", "img", "input", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in self.VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, text):
        self.texts.append((self.open[-1] if self.open else "", text))

    def all(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]

    @property
    def words(self):
        return " ".join(t for tag, t in self.texts if tag not in ("script", "style"))


def read(text):
    """The page, of which it is asserted that it needs nothing beside it and is no larger than
    five million bytes."""
    assert len(text.encode()) < 5_000_000
    found = Page(text)
    for _, attributes in found.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#"))
    assert "@import" not in text and "url(" not in text
    ids = [a["id"] for _, a in found.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in found.all("a")} <= set(ids)
    assert all(a["alt"] for a in found.all("img"))
    return found
