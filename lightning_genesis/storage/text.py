"""Text out of files that nobody vouches for: names, titles, messages."""


def is_clean(text: str) -> bool:
    """Whether text can be written as UTF-8 and shown on a terminal: no half characters, no controls."""
    return all(
        character in "\t\n" or (code >= 32 and not 127 <= code < 160 and not 0xD800 <= code < 0xE000)
        for character, code in zip(text, map(ord, text), strict=True)
    )


def shown(text: object) -> str:
    """Text for a terminal or a page: of what `is_clean` refuses, the codes."""
    whole = str(text)
    if is_clean(whole):
        return whole
    return "".join(one if is_clean(one) else ascii(one)[1:-1] for one in whole)
