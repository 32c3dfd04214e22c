"""A judge's scores are read from whatever it wrote, and where there is doubt there is no score."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.tasks.parse_scores import preference, scores, two_scores

MATH = """\
First, I will solve the problem myself:

3x + 10 = 5(x - 2)
3x + 10 = 5x - 10
20 = 2x
x = 10

Assistant 1:
x = 6

That is wrong, and no step is shown.

Assistant 2:
1. The bracket: 3x + 10 = 5x - 10
2. Subtract 5x: 3x = -5x

The second step is wrong.

"""

TWO: dict[str, tuple[float, float] | None] = {
    # What the prompt asks for: one line with the two numbers.
    "8 9": (8, 9),
    "8 9\nBoth answers are helpful.": (8, 9),
    "\n\n  8 9  \n\nBoth answers are helpful.": (8, 9),
    "8, 9": (8, 9),
    "8,9\nBoth.": (8, 9),
    "8/9\nThe second is better.": (8, 9),
    "8 / 9": (8, 9),
    "8; 9": (8, 9),
    "8 | 9": (8, 9),
    "| 8 | 9 |": (8, 9),
    "8\t9\nBoth.": (8, 9),
    "8 and 9": (8, 9),
    "8 & 9": (8, 9),
    "10 1": (10, 1),
    "10 10": (10, 10),
    "1 1\nBoth are off the subject.": (1, 1),
    "8.0 9.0": (8, 9),
    "7.5 8\nClose.": (7.5, 8),
    "7.5/8.5": (7.5, 8.5),
    "7½ 8": (7.5, 8),
    "7½, 8½": (7.5, 8.5),
    "8.25 9": (8.25, 9),
    "8 9.": (8, 9),
    "0 9\n\nAssistant 1 did not provide any response.": (0, 9),  # GPT-4's words of an empty answer
    "8, 9.\nBoth.": (8, 9),
    "(8, 9)": (8, 9),
    "(8, 9)\nThe second has more detail.": (8, 9),
    "[8, 9]\nThe second.": (8, 9),
    "[8, 9]": (8, 9),
    "{8, 9}": (8, 9),
    "[[8]] [[9]]": (8, 9),
    "<8> <9>": (8, 9),
    '"8 9"': (8, 9),
    "**8 9**\n\nBoth.": (8, 9),
    "**8** **9**": (8, 9),
    "*8* *9*": (8, 9),
    "__8__, __9__": (8, 9),
    "`8 9`\nBoth.": (8, 9),
    "```\n8 9\n```\nBoth.": (8, 9),
    "# 8 9\nBoth.": (8, 9),
    "- 8 9": (8, 9),
    "> 8 9": (8, 9),
    "8/10 9/10": (8, 9),
    "8/10, 9/10": (8, 9),
    "8/10 and 9/10": (8, 9),
    "8 / 10   9 / 10": (8, 9),
    "8.5/10, 7/10\nThe first.": (8.5, 7),
    "10/10 10/10": (10, 10),
    "8 out of 10, 9 out of 10": (8, 9),
    "８ ９": (8, 9),
    "８，９": (8, 9),
    "８．５　９": (8.5, 9),
    "（8，9）": (8, 9),
    "8、9": (8, 9),
    "8分 9分": (8, 9),
    "8 9 Both assistants are helpful, and Assistant 2 shows 3 examples.": (8, 9),
    "8 9 - Assistant 2 is more detailed.": (8, 9),
    "8\n9\nThe second is better.": (8, 9),
    "8 9\n\nAssistant 1: 3 of its 5 steps are right.": (8, 9),
    "8 9\nA score of 10 would need sources; a score of 2, 3 errors.": (8, 9),
    "8 9\r\nBoth.": (8, 9),
    "\ufeff8 9": (8, 9),
    "<think>Perhaps 3 4? No: 8 9.</think>\n8 9\nBoth.": (8, 9),
    # Labels.
    "Assistant 1: 8\nAssistant 2: 7": (8, 7),
    "Assistant 1: 8\nAssistant 2: 7\n\nThe first gives 3 examples.": (8, 7),
    "Assistant 1: 8, Assistant 2: 7": (8, 7),
    "Assistant 1: 8; Assistant 2: 7.": (8, 7),
    "Assistant 1: 8 Assistant 2: 7": (8, 7),
    "Assistant 1: 8 | Assistant 2: 7": (8, 7),
    "Assistant 1: 8/10\nAssistant 2: 7/10": (8, 7),
    "Assistant 1 - 8/10\nAssistant 2 - 7/10": (8, 7),
    "Assistant 1 — 8\nAssistant 2 — 7\nScores as asked.": (8, 7),
    "Assistant 1 = 8, Assistant 2 = 7": (8, 7),
    "Assistant 1 (8/10), Assistant 2 (7/10)": (8, 7),
    "Assistant 1 8/10, Assistant 2 7/10": (8, 7),
    "Assistant 2: 7\nAssistant 1: 8": (8, 7),
    "**Assistant 1:** 8\n**Assistant 2:** 7": (8, 7),
    "**Assistant 1**: **8**/10\n**Assistant 2**: **7**/10": (8, 7),
    "- **Assistant 1: 8**\n- **Assistant 2: 7.5**": (8, 7.5),
    "* Assistant 1 - Score: 8\n* Assistant 2 - Score: 7": (8, 7),
    "| Assistant | Score |\n|---|---|\n| Assistant 1 | 8 |\n| Assistant 2 | 7 |": (8, 7),
    "| Assistant 1 | Assistant 2 |\n|---|---|\n| 8 | 7 |": (8, 7),
    "Assistant A: 8\nAssistant B: 7": (8, 7),
    "Answer A: 8\nAnswer B: 7": (8, 7),
    "Response 1: 8\nResponse 2: 7": (8, 7),
    "Model #1: 8\nModel #2: 7": (8, 7),
    "A: 8\nB: 7": (8, 7),
    "A: 8, B: 7": (8, 7),
    "1. 8\n2. 7": (8, 7),
    "1) 8/10\n2) 7/10": (8, 7),
    "Score 1: 8\nScore 2: 7": (8, 7),
    "Score A: 8, Score B: 7": (8, 7),
    "Score for Assistant 1: 8\nScore for Assistant 2: 7": (8, 7),
    "Rating of Assistant 1: 8.5\nRating of Assistant 2: 7": (8.5, 7),
    "Assistant 1's score: 8\nAssistant 2's score: 7": (8, 7),
    "Assistant 1's score is 3 out of 10, and Assistant 2's score is 10 out of 10.": (3, 10),
    "Assistant 1 gets 8 and Assistant 2 gets 7.": (8, 7),
    "Assistant 1 receives a score of 8, while Assistant 2 receives 7.": (8, 7),
    "I would give Assistant 1 a score of 4 out of 10 and Assistant 2 a score of 8 out of 10.": (4, 8),
    "I would give Assistant 1 an 8 and Assistant 2 a 7.": (8, 7),
    "I would give Assistant 1 an 8/10 and Assistant 2 a 7/10 because of its tone.": (8, 7),
    "We assign a score of 5 to Assistant 1 and a score of 9 to Assistant 2.": (5, 9),
    "8 for Assistant 1, 7 for Assistant 2": (8, 7),
    "8 (Assistant 1), 7 (Assistant 2)": (8, 7),
    "8/10 for Assistant 1 and 7/10 for Assistant 2.": (8, 7),
    "The first assistant gets 8/10, the second assistant 7/10.": (8, 7),
    "Assistant One: 8\nAssistant Two: 7": (8, 7),
    "Assistant 1: 1 (wrong, no steps)\nAssistant 2: 8 (a slip at the end)": (1, 8),
    "Assistant 1: 8 - clear and short\nAssistant 2: 7 - it wanders": (8, 7),
    "Assistant 1: 8, because it is clear. Assistant 2: 7, because it is not.": (8, 7),
    "Assistant 1: 8 points\nAssistant 2: 7 points": (8, 7),
    # Statements.
    "Scores: 8 9": (8, 9),
    "Score: 8, 9\nBoth.": (8, 9),
    "Scores: (8, 9)": (8, 9),
    "**Scores:** 8/10, 9/10": (8, 9),
    "Ratings: 8 and 9, respectively.": (8, 9),
    "Output: (1, 7)": (1, 7),
    "Scores for Assistant 1 and 2: 8 9": (8, 9),
    "Scores for Assistant 1 and Assistant 2: 8, 9": (8, 9),
    "Assistant 1 and Assistant 2 score 8 and 9, respectively.": (8, 9),
    "The scores are 8 and 9 for Assistant 1 and Assistant 2, respectively.": (8, 9),
    "I rate them 8 and 9 respectively.": (8, 9),
    "I give 8 and 9 to Assistant 1 and Assistant 2.": (8, 9),
    "The scores for the first and second answers are 8 and 9, respectively.": (8, 9),
    "Here are my scores:\n8 9\nBoth are helpful.": (8, 9),
    # Chinese.
    "助手1：8分，助手2：7分": (8, 7),
    "助手1：8，助手2：7": (8, 7),
    "助手１：８分\n助手２：７分": (8, 7),
    "助手 1: 8\n助手 2: 7": (8, 7),
    "助手一：8分\n助手二：7.5分": (8, 7.5),
    "助手1得分：8\n助手2得分：7": (8, 7),
    "助手1的得分为8分，助手2的得分为7分。": (8, 7),
    "我给助手1打8分，给助手2打7分。": (8, 7),
    "回答1：8/10\n回答2：7/10": (8, 7),
    "第一个回答：8分\n第二个回答：7分": (8, 7),
    "评分：8 7": (8, 7),
    "评分：8，7\n助手1更详细。": (8, 7),
    "得分：（8，7）": (8, 7),
    "8 7\n助手1给出了3个例子，助手2给出了2个。": (8, 7),
    # Reviews first, scores after.
    MATH + "Scores:\nAssistant 1: 1\nAssistant 2: 3\n\nAssistant 2 did better.": (1, 3),
    MATH + "Scores:\n\nAssistant 1: 1/10\nAssistant 2: 3/10": (1, 3),
    MATH + "Scores:\nAssistant 1: 1 (wrong answer, no steps)\nAssistant 2: 3 (wrong steps)": (1, 3),
    MATH + "(1, 3)": (1, 3),
    MATH + "1 3": (1, 3),
    MATH + "1 3\n\nAssistant 2 at least shows its 2 steps.": (1, 3),
    MATH + "Output: (1, 3)": (1, 3),
    MATH + "Output:\n(1, 3)": (1, 3),
    MATH + "```python\n(1, 3)\n```\nBoth are wrong.": (1, 3),
    MATH + "$\\boxed{(1, 3)}$": (1, 3),
    MATH + "Final scores: (Assistant 1: 1/10, Assistant 2: 3/10)": (1, 3),
    MATH + "Therefore the scores are (1, 3) for Assistant 1 and Assistant 2, respectively.": (1, 3),
    MATH + "So I assign a score of 1 to Assistant 1 and a score of 3 to Assistant 2.": (1, 3),
    "Assistant 1:\nScore: 6/10\n\nGood:\n- 2 clear steps\n\nAssistant 2:\nScore: 8/10\n\nWhole code.": (
        6,
        8,
    ),
    "### Assistant 1\nGood code.\n**Score: 6**\n\n### Assistant 2\nBetter code.\n**Score: 8**": (6, 8),
    "Evaluation of Assistant 1's Answer:\nWrong.\n\nScore for Assistant 1: 3/10\n\n"
    "Evaluation of Assistant 2's Answer:\nRight.\n\nScore for Assistant 2: 9/10": (3, 9),
    "Assistant 1: The answer is wrong. Therefore, the score is 1.\n\n"
    "Assistant 2: A slip, it should be 8^2 + 6^2 and not 18^2 + 4^2. Therefore, the score is 5.": (1, 5),
    "Helpfulness: Assistant 1: 7, Assistant 2: 9\nDepth: Assistant 1: 6, Assistant 2: 8\n\n"
    "Overall: Assistant 1: 7, Assistant 2: 8.5": (7, 8.5),
    "Assistant 1: 5 (this is wrong)\nAssistant 2: 10 (this is right)\n\n"
    "Scores:\nAssistant 1: 2\nAssistant 2: 9": (2, 9),
    # Structured outputs.
    '{"scores": [8, 7]}': (8, 7),
    '{"scores":[8.5,7],"explanation":"3 steps of 5 are right"}': (8.5, 7),
    '{"score_1": 8, "score_2": 7}': (8, 7),
    '{"explanation": "Assistant 1: 3 errors", "score_1": 8, "score_2": 7}': (8, 7),
    '{"assistant_1": 8, "assistant_2": 7}': (8, 7),
    '{"assistant_1_score": 8, "assistant_2_score": 7}': (8, 7),
    '{"Assistant 1": {"score": 8, "reason": "x"}, "Assistant 2": {"score": 7, "reason": "y"}}': (8, 7),
    '{"scores": {"Assistant 1": 8, "Assistant 2": 7}}': (8, 7),
    '{"A": 8, "B": 7}': (8, 7),
    '{"1": "8/10", "2": "7/10"}': (8, 7),
    '{"scores": ["8", "7.5"]}': (8, 7.5),
    '[{"score": 8}, {"score": 7}]': (8, 7),
    '```json\n{"scores": [8, 7]}\n```': (8, 7),
    'Here is my verdict:\n```json\n{"score_1": 8, "score_2": 7}\n```\nThe first has 3 examples.': (8, 7),
    'My scores: {"scores": [8, 7]}': (8, 7),
    '{"scores": [8, 7], "explanation": "Cut off by the leng': (8, 7),
    '{"first": 8, "second": 7}': (8, 7),
    # No score, and none is guessed.
    "": None,
    "   \n": None,
    "N/A": None,
    "N/A N/A": None,
    "Scores: N/A": None,
    "Assistant 1: N/A\nAssistant 2: 8": None,
    "8": None,
    "8\nBoth are equally good.": None,
    "8/10": None,
    "9/10\nBoth answers are good.": None,
    "Score: 8": None,
    "Score: 8/10": None,
    "Both assistants deserve 9/10.": None,
    "Both: 8": None,
    "8 9 7": None,
    "8, 9, 7\nThree numbers.": None,
    "8/9/10": None,
    "7-8": None,
    "7-8 8-9": None,
    "7 - 8": None,
    "7–8": None,
    "7 to 8": None,
    "8 or 9": None,
    "-8 -9": None,
    "Scores: 0 9": None,
    "0.5 11": None,
    "11 8": None,
    "8 11": None,
    "80 90": None,
    "8% 9%": None,
    "80/100 90/100": None,
    "4/5 3/5": None,
    "2023 9": None,
    "8th 9th": None,
    "8x9": None,
    "8 x 9": None,
    "8 + 9": None,
    "8*9": None,
    "9 x 12 = 108": None,
    "The answer is 9 x 12 = 108.": None,
    "f(2) = 5(2)^3 - 2(2) + 3 = 39": None,
    "Question 7, 8": None,
    "Assistant 1: 8": None,
    "Assistant 1: 8\nAssistant 1: 7": None,
    "Assistant 2: 8\nAssistant 3: 7": None,
    "Assistant 1: 8\nAssistant 2: 7\nAssistant 3: 9": None,
    "Assistant 1: 7-8\nAssistant 2: 9": None,
    "Assistant 1: 7 to 8\nAssistant 2: 9": None,
    "Assistant 1: 8 or 9\nAssistant 2: 9": None,
    "Assistant 1: 0\nAssistant 2: 9": None,
    "Assistant 1: 0/10, Assistant 2: 9/10": None,
    "Assistant 1: 85\nAssistant 2: 90": None,
    "Assistant 1: 8/100\nAssistant 2: 9/100": None,
    "Assistant 1: 80%\nAssistant 2: 90%": None,
    "Assistant 1: 3 steps are right.\nAssistant 2: 4 steps are right.": None,
    "Assistant 1: 3x + 10 = 5\nAssistant 2: 5x = 10": None,
    "Assistant 1: 9 x 12 = 108\nAssistant 2: 9 x 12 = 98": None,
    "Assistant 1: 40 - 1 = 39\nAssistant 2: 41 - 1 = 40": None,
    "Assistant 1: 8, 2 errors\nAssistant 2: 7, 3 errors": None,
    "Assistant 1: 8\nAssistant 2: 7\nOn reflection:\nAssistant 1: 6\nAssistant 2: 9": None,
    "Assistant 1 wrote 2 paragraphs and Assistant 2 wrote 5.": None,
    "The first gives 3 reasons, the second 4.": None,
    "Both scores are between 8 and 9.": None,
    "Scores range from 7, 8 upwards.": None,
    "I would rate them on a scale of 1 to 10.": None,
    "I rate both on a scale of 1-10, but have not decided.": None,
    "Please rate on a scale from 1, 10.": None,
    "I'm sorry, but I can't compare these answers.": None,
    "As an AI language model, I cannot give scores to 2 of 3 answers.": None,
    "Both answers are equally good.": None,
    "Assistant 2 is better.": None,
    "[[A]]": None,
    "The roots are:\n2, 5\n\nNeither assistant found them.": None,
    "The pairs (2, 3) and (4, 5) solve it.": None,
    "The point (2, 4) lies on the line.": None,
    "In 3 of 4 cases the first is better; 8 of 10 readers agree.": None,
    "The answer came at 8:30, the other at 9:15.": None,
    "8:9": None,
    "8.5.1 9": None,
    "Version 3.5 is older than version 4.": None,
    "eight nine": None,
    "**Assistant 1**\n\n**Assistant 2**": None,
    MATH + "Both are wrong; the correct answer is 10.": None,
    MATH + "Scores: to be decided.": None,
    '{"scores": [8]}': None,
    '{"scores": [8, 7, 9]}': None,
    '{"scores": [0, 7]}': None,
    '{"scores": [8, null]}': None,
    '{"scores": null}': None,
    '{"scores": [true, 8]}': None,
    '{"score_1": 8}': None,
    '{"score_1": 8, "score_2": 11}': None,
    '{"score": 8}': None,
    '{"error": "rate limit 8 9"}': None,
    '{"scores": [8, 7]} or {"scores": [7, 8]}': None,
    "[]": None,
    "{}": None,
    "Errors: Assistant 1: 3, Assistant 2: 5": None,
    "Both are wrong. The errors:\nAssistant 1: 3\nAssistant 2: 5": None,
    "Errors: 3 for Assistant 1, 5 for Assistant 2": None,
    "<think>Perhaps 8 9, or": None,
    "助手1更好。": None,
    "助手1的回答十分详细，助手2的回答一般。": None,
    "助手1用了8分钟，助手2用了9分钟。": None,
    "评分范围是1到10。": None,
    "评分：8": None,
    "8至9分": None,
}


@pytest.mark.parametrize(("reply", "expected"), TWO.items())
def test_two_scores_are_read_or_there_are_none(reply: str, expected: tuple[float, float] | None) -> None:
    assert two_scores(reply) == expected


MANY: list[tuple[str, int, tuple[float, ...] | None]] = [
    ("8 7 9", 3, (8, 7, 9)),
    ("8 7 9\nThe third is best.", 3, (8, 7, 9)),
    ("8, 7, 9", 3, (8, 7, 9)),
    ("8/7/9", 3, (8, 7, 9)),
    ("(8, 7, 9)", 3, (8, 7, 9)),
    ("8/10 7/10 9/10", 3, (8, 7, 9)),
    ("Scores: 8, 7, and 9", 3, (8, 7, 9)),
    ("Answer 1: 8\nAnswer 2: 7\nAnswer 3: 9", 3, (8, 7, 9)),
    ("Answer 3: 9\nAnswer 1: 8\nAnswer 2: 7", 3, (8, 7, 9)),
    ("A: 8, B: 7, C: 9", 3, (8, 7, 9)),
    ("1. 8\n2. 7\n3. 9", 3, (8, 7, 9)),
    ("8\n7\n9\nThe third.", 3, (8, 7, 9)),
    ('{"scores": [8, 7, 9, 1]}', 4, (8, 7, 9, 1)),
    ('{"score_1": 8, "score_2": 7, "score_3": 9}', 3, (8, 7, 9)),
    ("1 2 3 4 5 6 7 8 9 10 1 2", 12, (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2)),
    ("助手1：8分，助手2：7分，助手3：9分", 3, (8, 7, 9)),
    ("Scores for answers 1, 2 and 3: 8 7 9", 3, (8, 7, 9)),
    ("8", 1, (8,)),
    ("8/10\nGood.", 1, (8,)),
    ("Score: 7.5", 1, (7.5,)),
    ("8 9", 1, None),
    ("8 9", 3, None),
    ("8 9 7 6", 3, None),
    ("Answer 1: 8\nAnswer 2: 7", 3, None),
    ("8 7 11", 3, None),
    ("8 7 0", 3, (8, 7, 0)),
    ('{"scores": [8, 7]}', 3, None),
    ("7-8 8 9", 3, None),
]


@pytest.mark.parametrize(("reply", "count", "expected"), MANY)
def test_as_many_scores_are_read_as_answers_were_shown(
    reply: str, count: int, expected: tuple[float, ...] | None
) -> None:
    assert scores(reply, count) == expected


PREFERENCES: dict[str, str | None] = {
    "[[A]]": "first",
    "[[B]]\nIt has more detail.": "second",
    "[[C]]": "tie",
    "**[[A]]**": "first",
    "[[a]]": "first",
    "[[ B ]]": "second",
    "[[A]].": "first",
    "[[Tie]]": "tie",
    "[[1]]": "first",
    "[[2]]": "second",
    "[[A>B]]": "first",
    "[[B>>A]]": "second",
    "[[A=B]]": "tie",
    "Both are good, but one is clearer.\n\nMy final verdict is: [[B]]": "second",
    "[[A]]\nIf it were shorter, [[B]] would win.": "first",
    "A": "first",
    "B\nIt is clearer.": "second",
    "C": "tie",
    "[A]": "first",
    "(B)": "second",
    "**A**": "first",
    "Verdict: B": "second",
    "Tie": "tie",
    "Assistant A": "first",
    "Answer B is better.": "second",
    "Assistant A is the better one.": "first",
    "平局": "tie",
    "助手A更好": "first",
    "［［Ａ］］": "first",
    '{"preference": "A"}': "first",
    '{"preference": "tie", "explanation": "[[A]]"}': "tie",
    '```json\n{"verdict": "B"}\n```': "second",
    "": None,
    "[[D]]": None,
    "[[A]] or [[B]]": None,
    "I say [[A]] for style and [[B]] for content.": None,
    "Answer with [[A]], [[B]] or [[C]].": None,
    "A good question.": None,
    "A and B are both good.": None,
    "Both are good.": None,
    "Assistant A is not better.": None,
    "8 9": None,
    "I cannot decide.": None,
    "Because of its detail, I like the second.": None,
    '{"preference": "neither of them is mine"}': None,
    '{"preference": null}': None,
}


@pytest.mark.parametrize(("reply", "expected"), PREFERENCES.items())
def test_a_preference_is_read_or_there_is_none(reply: str, expected: str | None) -> None:
    assert preference(reply) == expected


SIGNS = "0123456789 ./,-:()[]{}\"'|*Assistant助手分评\n½[[AB]]"


@given(st.text(alphabet=SIGNS, max_size=60), st.integers(1, 5))
def test_no_reply_breaks_the_reader_nor_gets_a_score_out_of_range(reply: str, count: int) -> None:
    found = scores(reply, count)
    assert found is None or (len(found) == count and all(0 <= score <= 10 for score in found))
    assert preference(reply) in ("first", "second", "tie", None)


@pytest.mark.parametrize(
    "piece", ["{", "[", "1 ", "8 9x\n", "Assistant 1: ", "score ", "<think>", "Overall: 8\n"]
)
def test_a_long_reply_is_read_at_once(piece: str) -> None:
    """A judge that repeats itself until it is cut off must not stop the reader."""
    started = time.monotonic()
    assert scores(piece * (20_000 // len(piece)), 2) is None
    assert time.monotonic() - started < 2


HALVES = st.sampled_from([half / 2 for half in range(2, 21)])


@given(HALVES, HALVES, st.sampled_from(["{} {}\nBoth.", "({}, {})", "Assistant 1: {}\nAssistant 2: {}"]))
def test_any_two_scores_come_back_as_they_were_given(first: float, second: float, form: str) -> None:
    assert two_scores(form.format(f"{first:g}", f"{second:g}")) == (first, second)


# The published reviews. In two of the 320 the published `score` is not what its own reply says
# ('Assistant 1: 10, Assistant 2: 4'); the same reply about another pair was published as [10, 4].
MISREAD = {"57H8uDw5kYEX2wFgvY8BN8": (10, 4), "ZgNXGB9wziYPnGFjqLzqVH": (10, 4)}


def test_every_published_review_of_gpt_4_is_read_as_it_was_scored() -> None:
    data = os.environ.get("DISTILL_DATA")
    if not data:
        pytest.skip("DISTILL_DATA does not name the folder with vicuna80/reviews_gpt4")
    files = sorted((Path(data) / "vicuna80" / "reviews_gpt4").glob("*.jsonl"))
    reviews = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    expected = {r["review_id"]: MISREAD.get(r["review_id"], tuple(r["score"])) for r in reviews}
    assert len(expected) == 320
    assert {r["review_id"]: two_scores(r["text"]) for r in reviews} == expected
