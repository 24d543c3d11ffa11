"""Do the links of a built site lead somewhere? python tools/check_links.py build/site

No network is asked: links to other sites are counted, not followed. What a page needs to be shown
(scripts, styles, pictures) must lie in the site.
"""

import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page points to, and what can be pointed to in it."""

    def __init__(self, text):
        """Read it."""
        super().__init__()
        self.links, self.needed, self.places = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Keep what is asked about."""
        has = dict(attrs)
        self.places |= {has[name] for name in ("id", "name") if has.get(name)}
        if tag == "a" and has.get("href"):
            self.links.append(has["href"])
        elif tag == "link" and has.get("rel") in ("stylesheet", "icon", "preload"):
            self.needed.append(has.get("href"))
        elif has.get("src"):
            self.needed.append(has["src"])


def broken(site):
    """What is wrong with a site, a line each, and how many links lead elsewhere.

    Args:
        site: the folder that Sphinx wrote.

    Returns:
        lines "PAGE: LINK: why", and the number of links to other sites.
    """
    site = Path(site).resolve()
    pages = {p: Page(p.read_text(encoding="utf-8")) for p in sorted(site.rglob("*.html"))}
    wrong, elsewhere = defaultdict(list), 0
    for path, page in pages.items():
        for link in page.links + page.needed:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                outside = parts.scheme != "data" and link in page.needed
                wrong[path] += [f"{link}: is needed, and lies outside"] if outside else []
                elsewhere += link in page.links
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_relative_to(site) or not target.exists():
                wrong[path].append(f"{link}: there is no such file")
            elif parts.fragment and target in pages:
                place = unquote(parts.fragment)
                # The theme's own links to the top of a page.
                if place not in pages[target].places | {"top", ""}:
                    wrong[path].append(f"{link}: there is no such place")
    lines = [f"{p.relative_to(site)}: {line}" for p, found in wrong.items() for line in found]
    return len(pages), lines, elsewhere


if __name__ == "__main__":
    count, lines, elsewhere = broken(sys.argv[1])
    print(
        "\n".join(lines) or f"{count} pages, every link leads somewhere; {elsewhere} lead outside"
    )
    sys.exit(1 if lines or not count else 0)
