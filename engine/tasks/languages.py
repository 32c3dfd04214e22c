"""The languages that `--to` knows: by English name, ISO 639-1 or 639-3 code, or tag (`zh-TW`, `pt_BR`).

Those that `language_check.py` can tell apart, with their scripts. A language that nobody can check is
refused, because its answers could not be trusted. Data and look-ups.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from store.errors import UsageError

Variant = Literal["", "simplified", "traditional"]


@dataclass(frozen=True, slots=True)
class Language:
    """code: ISO 639-1. name: as the prompt says it. variant: of Chinese characters, or empty."""

    code: str
    name: str
    variant: Variant = ""


# Script -> its letters, as ranges for a regular expression.
LETTERS: Mapping[str, str] = {
    "Latin": "A-Za-zªºÀ-ÖØ-öø-ɏḀ-ỿ", "Greek": "Ͱ-Ͽἀ-\u1fff", "Cyrillic": "Ѐ-ԯ", "Armenian": "\u0530-\u058f",
    "Hebrew": "\u0590-\u05ff", "Arabic": "\u0600-ۿݐ-ݿ\ufb50-\ufdff\ufe70-\ufeff", "Ethiopic": "ሀ-\u137f",
    "Devanagari": "\u0900-ॿ", "Bengali": "ঀ-\u09ff", "Gurmukhi": "\u0a00-\u0a7f", "Gujarati": "\u0a80-\u0aff",
    "Tamil": "\u0b80-\u0bff", "Telugu": "\u0c00-౿", "Kannada": "ಀ-\u0cff", "Malayalam": "\u0d00-ൿ",
    "Sinhala": "\u0d80-\u0dff", "Thai": "\u0e00-\u0e7f", "Lao": "\u0e80-\u0eff", "Myanmar": "က-႟",
    "Georgian": "Ⴀ-ჿ", "Hangul": "ᄀ-ᇿ가-\ud7af", "Khmer": "ក-\u17ff", "Kana": "ぁ-ヿ",
    "Han": "㐀-䶿一-鿿豈-\ufaff",
}  # fmt: skip

# Scripts, the one that marks a language first, a colon, and the languages that are written in them.
TABLE = """
Latin: af afr Afrikaans, az aze Azerbaijani, bs bos Bosnian, ca cat Catalan, cs ces Czech, cy cym Welsh
Latin: da dan Danish, de deu German, en eng English, eo epo Esperanto, es spa Spanish, et est Estonian
Latin: eu eus Basque, fi fin Finnish, fr fra French, ga gle Irish, gl glg Galician, hr hrv Croatian
Latin: hu hun Hungarian, id ind Indonesian, is isl Icelandic, it ita Italian, la lat Latin
Latin: lt lit Lithuanian, lv lav Latvian, ms msa Malay, nl nld Dutch, nn nno Norwegian Nynorsk
Latin: no nor Norwegian, pl pol Polish, pt por Portuguese, ro ron Romanian, sk slk Slovak
Latin: sl slv Slovenian, sq sqi Albanian, sv swe Swedish, sw swa Swahili, tl tgl Tagalog, tr tur Turkish
Latin: uz uzb Uzbek, vi vie Vietnamese
Cyrillic: be bel Belarusian, bg bul Bulgarian, kk kaz Kazakh, ky kir Kyrgyz, mk mkd Macedonian
Cyrillic: mn mon Mongolian, ru rus Russian, uk ukr Ukrainian
Cyrillic Latin: sr srp Serbian
Arabic: ar ara Arabic, fa fas Persian, ur urd Urdu
Devanagari: hi hin Hindi, mr mar Marathi, ne nep Nepali
Greek: el ell Greek
Hebrew: he heb Hebrew
Ethiopic: am amh Amharic
Armenian: hy hye Armenian
Georgian: ka kat Georgian
Bengali: bn ben Bengali
Gurmukhi: pa pan Punjabi
Gujarati: gu guj Gujarati
Tamil: ta tam Tamil
Telugu: te tel Telugu
Kannada: kn kan Kannada
Malayalam: ml mal Malayalam
Sinhala: si sin Sinhala
Thai: th tha Thai
Lao: lo lao Lao
Myanmar: my mya Burmese
Khmer: km khm Khmer
Hangul: ko kor Korean
Kana Han: ja jpn Japanese
Han: zh zho Chinese
"""

SIMPLIFIED = Language("zh", "Simplified Chinese", "simplified")
TRADITIONAL = Language("zh", "Traditional Chinese", "traditional")
BRAZILIAN = Language("pt", "Brazilian Portuguese")
ALIASES: Mapping[str, Language] = {
    "simplified chinese": SIMPLIFIED, "chinese simplified": SIMPLIFIED, "chinese (simplified)": SIMPLIFIED,
    "zh-hans": SIMPLIFIED, "zh-cn": SIMPLIFIED, "zh-sg": SIMPLIFIED, "zh-hans-cn": SIMPLIFIED,
    "traditional chinese": TRADITIONAL, "chinese traditional": TRADITIONAL,
    "chinese (traditional)": TRADITIONAL, "zh-hant": TRADITIONAL, "zh-tw": TRADITIONAL,
    "zh-hk": TRADITIONAL, "zh-mo": TRADITIONAL, "zh-hant-tw": TRADITIONAL,
    "mandarin": Language("zh", "Chinese"), "mandarin chinese": Language("zh", "Chinese"),
    "chi": Language("zh", "Chinese"), "cmn": Language("zh", "Chinese"),
    "brazilian portuguese": BRAZILIAN, "portuguese (brazil)": BRAZILIAN, "pt-br": BRAZILIAN,
    "nb": Language("no", "Norwegian"), "nob": Language("no", "Norwegian"),
    "farsi": Language("fa", "Persian"), "filipino": Language("tl", "Tagalog"),
    "fil": Language("tl", "Tagalog"), "bangla": Language("bn", "Bengali"),
    "flemish": Language("nl", "Flemish"), "castilian": Language("es", "Castilian Spanish"),
}  # fmt: skip


def _rows() -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """The table: (scripts, [code, three-letter code, name])."""
    for line in TABLE.strip().splitlines():
        scripts, _, languages = line.partition(": ")
        for language in languages.split(", "):
            yield tuple(scripts.split()), language.split(" ", 2)


@cache
def scripts_of(code: str) -> tuple[str, ...]:
    """The scripts that a language is written in."""
    return next(scripts for scripts, (known, _, _) in _rows() if known == code)


@cache
def alone_in_script(code: str) -> bool:
    """Whether the script that marks a language marks no other one here."""
    return sum(scripts[0] == scripts_of(code)[0] for scripts, _ in _rows()) == 1


@cache
def _known() -> dict[str, Language]:
    """Every spelling, in lower case, with what it means."""
    found = dict(ALIASES)
    for _, (code, code3, name) in _rows():
        found.update(dict.fromkeys((code, code3, name.lower()), Language(code, name)))
    return found


def find_language(name: str) -> Language:
    """The language of a name, a code or a tag. Raises UsageError for one that is not known."""
    known = _known()
    wanted = " ".join(name.replace("_", "-").casefold().split())
    if wanted in known:
        return known[wanted]
    primary, _, region = wanted.partition("-")
    if primary in known and len(primary) <= 3 and len(region) == 2 and region.isalpha():
        language = known[primary]
        return Language(language.code, f"{language.name} ({region.upper()})", language.variant)
    near = difflib.get_close_matches(wanted, known, 3)
    hint = f"did you mean {' or '.join(known[n].name for n in near)}?" if near else "for example: Chinese, zh"
    raise UsageError(f"--to {name}: unknown language; expected an English name or an ISO code ({hint})")
