"""What the page on metrics says there is."""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "packaging" / "METRICS.md"


def documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name, type and labels of every metric in the page."""
    rows = re.findall(r"^\| `(keymoot_\w+)` \| (\w+) \|([^|]*)\|", DOCUMENT.read_text(), re.MULTILINE)
    return {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
