"""A strict reading of generated HTML: tags must balance, and what could run or load is listed."""

from html.parser import HTMLParser

VOID = {"meta", "input", "br", "hr", "img", "link", "base", "source", "embed", "col"}


class Parsed(HTMLParser):
    """Collects tags, attributes and text; fails on a tag that closes nothing."""

    def __init__(self, markup):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(markup)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend((tag, name, value) for name, value in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend((tag, name, value) for name, value in attrs)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    def values(self, tag, name):
        return [v for t, n, v in self.attributes if (t, n) == (tag, name)]
