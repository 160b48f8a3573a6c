"""The words of an answer as `strict` and `exact` see them."""

import re
import unicodedata

ARTICLES = frozenset({"a", "an", "the"})
NUMBER_WORDS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
NUMBER_WORDS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}

_APOSTROPHES = re.compile("['`\u2019\u02bc]")  # typewriter, grave, typographic, modifier letter
_MINUS = "\u2212"
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# A number keeps its decimal point and a leading minus sign; comparison signs are words, since < 5 mm is not > 5 mm.
_WORD = re.compile(r"(?<!\w)-(?=\d)\d+(?:\.\d+)*\w*|[^\W_]+(?:\.\d+)*|[<>≤≥=+±%°]")


def words_of(text: str) -> tuple[str, ...]:
    """Splits a text into comparable words.

    Case, blanks and Unicode spelling variants do not count; apostrophes vanish (`Crohn's` = `Crohns`); other punctuation separates
    words (`x-ray` = `x ray`); number words up to ten and `none` become digits; articles go, except as the last word (`hepatitis A`).
    """
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    plain = _THOUSANDS.sub("", _APOSTROPHES.sub("", plain.replace(_MINUS, "-")))
    words: list[str] = [NUMBER_WORDS.get(match.group(), match.group()) for match in _WORD.finditer(plain)]
    return tuple(word for place, word in enumerate(words) if word not in ARTICLES or place == len(words) - 1)


def same_text(first: str, second: str) -> bool:
    """Equality after normalisation; texts without a single word (`?`) are compared as they are, blanks at the ends aside."""
    first_words, second_words = words_of(first), words_of(second)
    if not first_words and not second_words:
        return first.strip() == second.strip()
    return first_words == second_words
