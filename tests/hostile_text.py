"""Text that does something on a terminal or in a log, and how to tell that it no longer does."""

from __future__ import annotations

import unicodedata

CORPUS = {
    "colour": "a\x1b[31mred\x1b[0m",
    "clear": "\x1b[2J\x1b[H",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;https://evil.example\x1b\\here\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "line feed": "a\n2026-01-01T00:00:00.000Z CRITICAL worker-1 agent_platform forged",
    "carriage return": "a\rforged",
    "both": "a\r\nforged",
    "bell": "\x07",
    "backspace": "abc\x08\x08\x08xyz",
    "tab": "a\tb",
    "vertical": "a\x0bb\x0cc",
    "nul": "a\x00b",
    "delete": "a\x7fb",
    "csi of one character": "a\x9b31mred",
    "osc of one character": "a\x9d0;owned\x9c",
    "next line": "a\x85forged",
    "separators of files": "a\x1cb\x1dc\x1ed\x1fe",
    "line separator": "a\u2028forged\u2029forged",
    "override": "a\u202egpj.exe\u202c",
    "isolate": "a\u2066b\u2067c\u2068d\u2069",
    "marks": "a\u200eb\u200fc\u061cd",
    "byte order mark": "\ufeffa",
    "lone surrogate": "a\udc9bb",
    "markup": "[red]a[/red] [link=https://evil.example]b[/link] [/] :boom:",
}
HARMLESS = ("线索评分 🤖 é", "[1, 2]", "a\\nb", "👩‍👩‍👧", "שלום", "x" * 10)


def active(text: str, *, lines: bool = False) -> list[str]:
    """The characters of a printed text that do something. `lines`: but for line feeds, which end lines of ours."""
    return [
        f"U+{ord(character):04X}"
        for character in text
        if (unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") and not (lines and character == "\n"))
        or unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        or character in "\u200e\u200f\u061c\ufeff"
    ]
