"""Take the pictures of finished reports that README.md and docs/gallery.md show.

    python -m benchmarks.pictures PAGE PICTURE [--at ID]

PAGE is a report's `index.html`, PICTURE a PNG file: what a reader sees in a window of 1,400 x 900 pixels, from the top
of the page or from the element ID. It needs what tests of pages need (requirements-dev.txt and Chromium).
"""

import argparse
from pathlib import Path

from tests.browser import chromium, open_page, to_uri

WINDOW = {"width": 1400, "height": 900}
MOST_BYTES = 300_000
"""Size of a picture that a reader of the README should not have to wait for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--at", default="", help="id of the element at the top of the picture")
    args = parser.parse_args()
    with chromium() as browser, open_page(browser, to_uri(args.page), viewport=WINDOW, color_scheme="light") as page:
        if args.at:
            page.locator(f"#{args.at}").evaluate("(element) => element.scrollIntoView({ behavior: 'instant' })")
        page.wait_for_timeout(2000)  # figures are drawn after the text
        args.picture.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=args.picture)
    size = args.picture.stat().st_size
    print(f"{args.picture}: {size:,} bytes{'' if size <= MOST_BYTES else f', more than {MOST_BYTES:,}'}")


if __name__ == "__main__":
    main()
