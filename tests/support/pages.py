"""The pages of the documentation: their blocks of code, and presets that they show."""

import re
from pathlib import Path
from typing import NamedTuple

from tests.support.program import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its language and its text."""

    language: str
    text: str


def blocks(page: Path, language: str = "") -> list[Block]:
    """Blocks of a page in order, or those in one language."""
    found = [Block(*match) for match in _BLOCK.findall(page.read_text(encoding="utf-8"))]
    return [block for block in found if language in ("", block.language)]


def write_presets(folder: Path) -> list[Path]:
    """Write every file that a block names in a comment, such as `# conf/backbone/own.yaml`, below a folder."""
    written = []
    for page in PAGES:
        for block in blocks(page):
            if name := re.search(r"^# (conf/\S+)$", block.text, re.MULTILINE):
                path = folder / name[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")
                written.append(path)
    return written
