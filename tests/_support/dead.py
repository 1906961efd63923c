"""Nothing in src/ is dead: what neither src/ nor experiments/ use must be a public name, one that the docs show.

Run: python tests/_support/dead.py       (make lint)
"""

import re
import sys
from pathlib import Path

from vulture import Vulture

ROOT = Path(__file__).parents[2]
TOLD = {
    "__getattr__",
    "is_differentiable",
    "higher_is_better",
    "full_state_update",
    "compute",
    "_computed",
    "showwarning",
    "setup",
    "state_key",
    "teardown",
}
"""Names that Python, its warnings, torchmetrics and Lightning ask for."""
CALLED = "on_"
"""How the methods of a callback begin, which its trainer calls."""


def main() -> int:
    """Print what is dead; return how much it is."""
    found = Vulture()
    found.scavenge([str(ROOT / folder) for folder in ("src", "experiments", "docs", "benchmarks")])
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "src").rglob("*.j2")]
    shown = set(re.findall(r"\w+", "\n".join(page.read_text(encoding="utf-8") for page in pages))) | TOLD
    dead = [one for one in found.get_unused_code(min_confidence=60) if one.name not in shown]
    dead = [one for one in dead if "src" in one.filename.parts and not one.name.startswith(CALLED)]
    for one in dead:
        print(f"{one.filename.relative_to(ROOT)}:{one.first_lineno}: {one.typ} {one.name} is used nowhere")  # noqa: T201
    return len(dead)


if __name__ == "__main__":
    sys.exit(main() > 0)
