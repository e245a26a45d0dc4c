"""What may be said on a terminal."""


def printable(text: str) -> str:
    """Text without what a terminal would obey: an escape character becomes the picture of one, and so on."""
    shown = (
        chr(0x2400 + ord(c)) if ord(c) < 32 else c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text
    )
    return "".join(shown)
