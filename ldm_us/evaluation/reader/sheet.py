"""The sheet that a reader opens: one HTML file, without a network, with the images and without the key.

Every image is decoded, made grey, brought to one size and encoded anew, so that file name, metadata and compression
tell nothing. The reader's name is asked first, and the answers are kept in the browser under study and name, so that a
second reader at the same computer does not see them, until they are saved as a JSON file. Printed, it shows all images
with the ratings to tick.
"""

from pathlib import Path

from ldm_us.display.pages import render
from ldm_us.evaluation.reader.deck import RATINGS, Key, prepare
from ldm_us.files.pictures import to_picture


def sheet(key: Key) -> str:
    """The whole page, in ASCII. Nothing in it tells the kinds apart."""
    return render(
        "ldm_us/evaluation/reader/sheet.html",
        title=f"Reader study {key.study}",
        study=key.study,
        count=len(key.cards),
        pictures=(to_picture(prepare(Path(card.file), key.sides)) for card in key.cards),
        ratings=RATINGS,
        classes=key.classes if key.ask_class else (),
    )
