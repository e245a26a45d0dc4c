"""The predicates, on what they must find and on what they must leave alone."""

import pytest

from mlm_pytorch.doctor import text as checks
from mlm_pytorch.doctor.languages import check_languages, language_of, script_of
from mlm_pytorch.doctor.text import TEXT_FAULTS, check_texts

INNOCENT = [
    "Le café est fermé à Noël ; l’été, on y mange « dehors » – c’est agréable.",
    "A situação é difícil, mas não há razão para pânico: “amanhã será melhor”, diz ela.",
    "Đây là một câu tiếng Việt bình thường, không có lỗi gì cả.",
    "Ångström, Åland och Öland ligger inte i Ängelholm.",
    "Prices rose 4.5% in 2019 (see table 3), from $1,200 to $1,254 – R&D costs too; AT&T and 3 < 4 > 2.",
    "if x < y and y > z: return [MAX, MIN][x]  # code in passing",
    "He said: 'NASA and the FBI know; the rest is silence...' -- and left.",
    "日本語の文章はスペースなしで書かれます。これは普通の文です。",
    "The Pseudopseudohypoparathyroidism article at https://example.org/a/b is long.",
    "I am a I or a b c d of it, e.g. x, y.",
    "Total: 12, 13 and 14.\n\tIndented once, twice.\r\nNew line.\fNew page.",
    "func f(n int) int {\n\tfor i := 0; i < n; i++ {\n\t\tif i == 3 {\n\t\t\treturn i\n\t\t}\n\t}\n\treturn 0\n}",
    "#define A\t\t\t\t1\n#define LONGER\t\t\t2\n",
    "pub fn fold<B>(self, f: impl Fn(A) -> B) -> Vec<B> { Option::<A>::None.map::<B>(f) }",
]


@pytest.mark.parametrize("fault", TEXT_FAULTS, ids=lambda fault: fault.check)
def test_innocent_text_is_left_alone(fault):
    assert [text for text in INNOCENT if fault.holds(text)] == []


@pytest.mark.parametrize(
    ("check", "text"),
    [
        ("is_mojibake", "cafÃ©"),
        ("is_mojibake", "itâ€™s"),
        ("is_mojibake", "ÐŸÑ€Ð¸Ð²ÐµÑ‚"),
        ("is_mojibake", "ï»¿Title"),
        ("has_control", "a\x07b"),
        ("has_control", "a\x85b".replace("\x85", "\x9f")),
        ("has_invisible", "a\u200bb"),
        ("has_markup", "a<br/>b"),
        ("has_markup", "a&nbsp;b"),
        ("has_special_tokens", "end<|endoftext|>"),
        ("has_special_tokens", "<s> begin </s>"),
        ("is_in_pieces", "tok@@ en@@ iz@@ ed text"),
        ("is_in_pieces", "▁the ▁old ▁clock"),
        ("is_spaced_out", "t h e o l d c l o c k i s"),
        ("has_blob", "id " + "deadbeef01" * 5),
        ("is_address", "/usr/share/dict/words"),
        ("is_address", "user@example.org"),
        ("is_address", "550e8400-e29b-41d4-a716-446655440000"),
        ("is_numbers", "12,5 3.4 -7"),
        ("is_record", "a\tb\tc\td\te"),
        ("is_record", "a\tb\tc\td\te\nf\tg\t\th\ti\tj"),
        ("has_markup", "<P>One.<P>Two."),
        ("has_markup", "a word<B>in bold</B>"),
        ("has_padding", "Chapter 1 ............................ 7"),
        ("repeats_itself", "the " * 500),
        ("has_no_blanks", "thewordsofthissentencewerewrittenwithoutanyblanksbetweenthemallalong"),
    ],
)
def test_faults_are_seen(check, text):
    assert getattr(checks, check)(text)


def test_one_document_of_a_few_says_nothing():
    findings = check_texts(["A sentence.", "Another one.", "nothing but \x00"])
    assert {finding.level for finding in findings} == {"green"}


def test_sequences_are_not_judged_as_text():
    letters = ["MKTLLVAGGHWYP" * 10] * 50
    assert "no-blanks" in {f.check for f in check_texts(letters) if f.level != "green"}
    assert "no-blanks" not in {f.check for f in check_texts(letters, sequences=True)}


@pytest.mark.parametrize(
    ("text", "script", "language"),
    [
        ("The dog and the cat were there for the rest of the day, which they liked.", "Latin", "English"),
        ("Les enfants sont dans la maison avec leur mère et ils ne sont pas tristes.", "Latin", "French"),
        ("El perro y los gatos están en la casa con una niña, pero también con las aves.", "Latin", "Spanish"),
        ("Het kind is niet thuis, maar met een van zijn vrienden naar het park.", "Latin", "Dutch"),
        ("这个句子是用中文写的，没有空格，也没有别的字母。", "Han, Kana or Hangul", None),
        ("Это предложение написано кириллицей и довольно длинное.", "Cyrillic", None),
        ("7 + 5 = 12", None, None),
    ],
)
def test_scripts_and_languages(text, script, language):
    assert script_of(text) == script
    assert language_of(text) == language


def test_one_language_is_green():
    assert {f.level for f in check_languages(["The end of the day was near and the lamp was out."] * 50)} == {"green"}
