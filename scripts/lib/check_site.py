"""Says which links of a built site lead nowhere. Links to other hosts are not followed. See scripts/docs."""

import html.parser
import pathlib
import sys
import urllib.parse


class Page(html.parser.HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.anchors = set()
        self.links = []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        self.links += [attributes[name] for name in ("href", "src") if attributes.get(name)]


def main(root):
    pages = {path.resolve(): Page(path) for path in root.rglob("*.html")}
    assert len(pages) > 15, f"{root} has only {len(pages)} pages"
    problems = []
    count = 0
    for path, page in pages.items():
        # It stands for any address, so its links are made from the root.
        folder = root.resolve() if path.name == "404.html" else path.parent
        for link in page.links:
            target = urllib.parse.urlsplit(link)
            if target.scheme or target.netloc:
                continue
            count += 1
            file = path
            if target.path:
                file = (folder / urllib.parse.unquote(target.path).lstrip("/")).resolve()
            if file.is_dir():
                file /= "index.html"
            anchor = urllib.parse.unquote(target.fragment)
            if not file.is_relative_to(root.resolve()) or not file.exists():
                problems.append(f"{path.relative_to(root.resolve())}: no page for {link}")
            elif anchor and file in pages and anchor not in pages[file].anchors:
                problems.append(f"{path.relative_to(root.resolve())}: no heading for {link}")
    if problems:
        sys.exit("\n".join(sorted(set(problems))))
    print(f"{len(pages)} pages, {count} links, all of which lead somewhere")


main(pathlib.Path(sys.argv[1]))
