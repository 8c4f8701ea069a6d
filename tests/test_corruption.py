import io
import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onesteptrain.data.corruption import KINDS, corrupt
from onesteptrain.data.corruption.answers import Anchor, sentences
from onesteptrain.data.corruption.numbers import Number, change, numbers, same_value
from onesteptrain.data.images import load_image
from onesteptrain.data.pool import ImageRef, Sample, Turn, open_pool, text_of
from onesteptrain.errors import ConfigError
from tests.building import png
from tests.synthetic_data import synthetic

PICTURES = {"other_picture", "blank_picture"}

ODD = {
    "number": ("How many?", "7"),
    "number2": ("How many are there?", "9"),
    "word": ("What colour?", "Red"),
    "word2": ("What colour is it?", "blue"),
    "yes": ("Is it so?", "Yes."),
    "no": ("Is it not so?", "No, it is not."),
    "letter": ("Which?\n(A) 3 cm\n(B) 4 cm", "(B) 4 cm"),
    "letter2": ("Which one?\nA. x\nB. y\nC. z", "Because of y.\nThe answer is C."),
    "empty": ("Nothing?", ""),
    "emoji": ("How does it feel?", "👍🏽 Good 🎉! It is 5 🎂 today 👨‍👩‍👧. So 5 it is 😀."),
    "chinese": ("多少？", "图中有三个苹果和4个梨。每个梨重12克。4乘以12等于48。所以答案是48。"),
    "japanese": ("いくつ？", "りんごは3個あります。みかんは5個あります。合計は8個です。答え：8"),
    "arabic": ("كم؟", "هناك ٣ تفاحات. وهناك ٤ برتقالات. المجموع ٣ + ٤ = ٧. الجواب: ٧"),
    "json": ("Give JSON.", '{"reasoning": "2 + 3", "answer": 5, "unit": "cm"}'),
    "boxed": ("What is x?", "We have $x+2=6$. Hence $x=4$. So $$x = \\boxed{4}$$"),
    "hashes": ("How much?", "She pays 3 * $1,250.50 = $3,751.50.\nThen she has 12% left.\n#### 3,751.50"),
    "thinking": ("And?", "<think>\nThere are 12 rows. Each has 3 seats.\n12 x 3 = 36.\n</think>\n\nThe answer is 36."),
    "steps": ("Solve.", "1. Take 14.\n2. Add 5 to 14: 14 + 5 = 19.\n3. Halve 19: 19 / 2 = 9.5.\n\n**Answer:** 9.5"),
    "open": ("Describe.", "A man rides a brown horse on a long beach while the sun goes down behind him"),
    "huge": ("Count.", " ".join(f"Then {n} follows {n - 1}." for n in range(1, 3000)) + " The answer is 2999."),
    "digits": ("Which?", "9" * 5000),
}


def sample(uid, question, answer, *, picture=None, before=()):
    parts = (question,) if picture is None else (ImageRef(png(picture), f"{picture}.png"), question)
    return Sample(uid, 0, (*before, Turn("user", parts), Turn("assistant", (answer,))), {"topic": "odd"})


def odd_samples():
    return [sample(uid, *texts, picture=place % 5 or None) for place, (uid, texts) in enumerate(ODD.items())]


def real_samples(kind, count=40):
    rows = open_pool(synthetic(kind) / "heldout.jsonl")[:count]
    return [row for row in rows if isinstance(row, Sample)]


SETS = {"odd": odd_samples, "digits": lambda: real_samples("digits"), "charts": lambda: real_samples("charts")}


@pytest.fixture(params=SETS)
def anchors(request):
    return SETS[request.param]()


def everything(anchors, seed=0):
    return corrupt(anchors, count=10**6, seed=seed)


def of_kind(kind, *anchors, seed=0):
    return {one.anchor: one for one in everything(anchors, seed) if one.kind == kind}


def answer(one):
    return text_of(one if isinstance(one, Sample) else one.sample, "assistant")


def fields(one):
    return one.sample.uid, one.anchor, one.kind, one.span, answer(one), tuple(image.name for image in one.sample.images)


def test_each_is_a_copy_of_its_anchor_in_which_one_thing_differs(anchors):
    by_uid = {anchor.uid: anchor for anchor in anchors}
    made = everything(anchors)
    assert len({one.sample.uid for one in made}) == len(made)
    for one in made:
        anchor = by_uid[one.anchor]
        assert one.sample.uid == f"{anchor.uid}~{one.kind}"
        assert (one.sample.row, one.sample.fields) == (anchor.row, anchor.fields)
        assert text_of(one.sample, "user") == text_of(anchor, "user")
        assert (answer(one) == answer(anchor)) == (one.kind in PICTURES) == (one.span is None)
        assert (one.sample.images == anchor.images) == (one.kind not in PICTURES)


def test_the_span_is_where_the_text_differs(anchors):
    by_uid = {anchor.uid: answer(anchor) for anchor in anchors}
    for one in everything(anchors):
        if one.span is not None:
            (start, end), old, new = one.span, by_uid[one.anchor], answer(one)
            assert 0 <= start < end <= len(new)
            assert new[:start] == old[:start]
            if one.kind == "cut_off":
                assert end == len(new) < len(old)
                assert old.startswith(new)
            elif one.kind not in ("other_answer", "bare_answer"):
                rest = len(new) - end
                assert old[len(old) - rest :] == new[end:]
                assert old[start : len(old) - rest] != new[start:end]


def test_what_comes_out_depends_on_the_seed_and_not_on_the_order(anchors):
    turned = random.Random(1).sample(anchors, len(anchors))
    first, again, other = everything(anchors), everything(turned), everything(anchors, seed=1)
    assert list(map(fields, first)) == list(map(fields, again))
    assert set(map(fields, first)) != set(map(fields, other))


def test_a_smaller_count_gives_the_beginning_and_is_even():
    anchors = real_samples("charts")
    made = list(map(fields, everything(anchors)))
    assert list(map(fields, corrupt(anchors, count=100, seed=0))) == made[:100]
    per_anchor = Counter(one[1] for one in made[:100])
    assert set(per_anchor.values()) == {2, 3}  # 100 of 40 anchors
    per_kind = Counter(one[2] for one in made[:100])
    assert set(per_kind) == set(KINDS)
    assert max(per_kind.values()) - min(per_kind.values()) <= 4  # a few kinds apply to fewer anchors


def test_no_count_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        corrupt(odd_samples(), count=0, seed=0)


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=120)), max_size=5), st.integers(0, 3))
def test_any_texts_are_corrupted_or_left_out(texts, seed):
    anchors = [sample(str(place), *text) for place, text in enumerate(texts)]
    for one in everything(anchors, seed):
        assert answer(one) != texts[int(one.anchor)][1]
        assert 0 <= one.span[0] <= one.span[1] <= len(answer(one))


@given(st.from_regex(r"\A(?:\d{1,9}|\d{1,3}(?:,\d{3}){1,3}|\d{1,6}\.\d{1,4})\Z"), st.integers(0, 100))
def test_a_changed_number_looks_the_same_and_differs(text, seed):
    (old,) = numbers(text)
    new = change(old, random.Random(seed))
    assert new.value != old.value
    assert new.value > 0
    assert re.sub(r"\d", "0", new.text) == re.sub(r"\d", "0", old.text)
    assert new.text.startswith("0") <= old.text.startswith("0")
    changed = sum(a != b for a, b in zip(new.text, old.text, strict=True))
    last = 10 ** max(0, len(str(old.digits)) - 4)
    assert abs(new.digits - old.digits) in (last, 2 * last, 3 * last) or changed == 1
    assert abs(new.value - old.value) >= old.value / 10**4


def test_digits_of_other_scripts_stay_in_their_script():
    (old,) = numbers("٣٤٫")
    assert re.fullmatch("[٠-٩]{2}", change(old, random.Random(0)).text)


def test_what_is_no_quantity_is_left_alone():
    found = "1. Take x1 and O_2 and 3 m^{2}.\n2) Step 4: the 5th is 6, see (7) and https://a.b/8?c=9 and 10,500.25."
    assert [number.text for number in numbers(found)] == ["3", "6", "10,500.25"]
    assert [number.text for number in numbers("5,1,4,5 and red12")] == ["5", "1", "4", "5", "12"]


def test_numbers_are_equal_whatever_their_marks():
    assert same_value(Number(0, "4,866"), Number(0, "4866.00"))
    assert not same_value(Number(0, "4.866"), Number(0, "4866"))


FINALS = {
    "So we get 12.\nThe answer is 12.": "12",
    "Answer: (B) red. Note that A is blue.": "(B) red",
    "It is $x=4$, so \\boxed{\\frac{1}{2}}": "\\frac{1}{2}",
    "3 + 4 = 7\n#### 7": "7",
    "<answer> 5 cm </answer>": "5 cm",
    "<think>The answer is 3. No, 4.</think>\nFour": "Four",
    "**Answer:** yes": "yes",
    "所以答案是48。": "48",
    "Risposta: 3,5": "3,5",
    "Rouge": "Rouge",
    "He walks home. He sleeps at 9.": "He sleeps at 9",
}


@pytest.mark.parametrize(("text", "final"), FINALS.items())
def test_the_final_answer_is_found(text, final):
    assert Anchor(sample("a", "?", text)).said == final


def test_sentences_end_at_stops_of_any_script_and_not_in_numbers_or_names():
    text = "It costs 3.50, says Dr. Who at 2 P. M. today. 是。好！ 1. One\n2. Two <think>x? y</think>"
    assert [text[a:b] for a, b in sentences(text)] == [
        *("It costs 3.50, says Dr. Who at 2 P. M. today.", "是。", "好！", "1. One", "2. Two", "x?", "y")
    ]


def test_a_wrong_number_is_in_the_chain_or_in_the_final_answer_and_is_carried_if_so():
    anchor = sample("a", "How much?", "A pen costs 5. So $3 × 5 = $15.00\nShe pays $15.00.\nThe answer is 15.")
    for seed in range(20):
        (step,), (result,), (carried,) = (
            of_kind(kind, anchor, seed=seed).values() for kind in ("wrong_step", "wrong_result", "carried_error")
        )
        assert answer(step).endswith("The answer is 15.")
        assert answer(result).startswith("A pen costs 5. So $3 × 5 = $15.00\nShe pays $15.00.\nThe answer is ")
        new = re.fullmatch(
            r"A pen costs 5. So \$3 × 5 = \$(\d\d)\.00\nShe pays \$(..)\.00\..*is (..)\.", answer(carried), re.S
        )
        assert len(set(new.groups())) == 1


def test_a_result_is_carried_from_where_it_is_found_and_not_from_a_list():
    (one,) = of_kind("carried_error", sample("a", "Sum?", "The digits: 5,0,3. 5x0=0. The answer is 0.")).values()
    assert answer(one).startswith("The digits: 5,0,3. 5x0=")
    assert not of_kind("carried_error", sample("a", "Odd?", "The digits: 4,3,1,7. Odd: 3,1,7. The answer is 3."))


def test_choices_are_turned_into_what_is_not_right():
    questions = {
        "Which?\n(A) 3 cm\n(B) 4 cm": ("The answer is (B) 4 cm.", {"The answer is (A) 3 cm."}),
        "Is it?": ("Yes, it is.", {"No, it is."}),
        "Ist es so?": ("Antwort: Ja", {"Antwort: Nein", "Antwort: Nee"}),
        "Which is longer?\nChoices: top | bottom | top shelf": ("The answer is top.", {"The answer is bottom."}),
        "对吗？": ("是的。", {"不是。"}),
    }
    for question, (said, wrong) in questions.items():
        for seed in range(5):
            (one,) = of_kind("wrong_choice", sample("a", question, said), seed=seed).values()
            assert answer(one) in wrong


def test_words_are_turned_into_those_of_a_like_question_that_cannot_mean_the_same():
    colours = [sample(uid, "Which colour?", uid) for uid in ("red", "dark red", "blue")]
    assert answer(of_kind("wrong_choice", *colours)["red"]) == "blue"


def test_another_answer_has_the_same_form_and_another_conclusion():
    texts = ["7", "7.0", "9", "Red", "2 + 5 = 7. The answer is 7.", "B", "4 + 5 = 9. The answer is 9."]
    anchors = [sample(text, f"How many in {place}?", text) for place, text in enumerate(texts)]
    made = {uid: answer(one) for uid, one in of_kind("other_answer", *anchors).items()}
    made.pop("9", None)  # if it was changed into 7 as a number before
    assert made == {"7": "9", "7.0": "9", texts[4]: texts[6], texts[6]: texts[4]}


def test_a_cut_falls_inside_a_sentence_before_the_conclusion():
    text = "There are three red bars here. The tallest of them is on the left. The answer is 5."
    for seed in range(20):
        (one,) = of_kind("cut_off", sample("a", "?", text), seed=seed).values()
        assert len(answer(one)) < text.index(" The answer")
        assert answer(one)[-1].isalpha()
        assert text[len(answer(one))] == " "
        assert answer(one)[slice(*one.span)] == answer(one).split()[-1]


def test_a_foreign_sentence_is_one_that_only_one_other_anchor_says():
    common = "There are 4 bars."
    anchors = [sample(str(n), "?", f"{common} Bar {n} is {n + 20}. The answer is {n}.") for n in range(3)]
    for uid, one in of_kind("foreign_sentence", *anchors).items():
        assert answer(one)[slice(*one.span)] in {f"Bar {n} is {n + 20}." for n in range(3) if str(n) != uid}


def test_a_step_is_put_before_the_one_that_it_needs():
    (one,) = of_kind("shuffled_steps", sample("a", "?", "Bars: 3, 8.\nIt is hot.\n8-3=5.\nThe answer is 5.")).values()
    assert answer(one) == "8-3=5.\nBars: 3, 8.\nIt is hot.\nThe answer is 5."
    assert not of_kind("shuffled_steps", sample("a", "?", "The cat is black. The dog is white. The sun is up."))


def test_the_bare_answer_is_what_the_chain_ends_in():
    (one,) = of_kind("bare_answer", sample("a", "?", "2 + 3 = 5.\n\\boxed{5}")).values()
    assert answer(one) == "5"
    assert not of_kind("bare_answer", sample("a", "?", "5"))


def test_pictures_are_swapped_with_those_of_another_conclusion_that_differ():
    same, other, agreeing = (
        sample("b", "?", "8", picture=1),
        sample("c", "??", "9", picture=2),
        sample("d", "?", "7", picture=3),
    )
    own = sample("a", "?", "7", picture=1)
    assert of_kind("other_picture", own, same, other, agreeing)["a"].sample.images == other.images
    assert not of_kind("other_picture", own)
    assert not of_kind("other_picture", own, sample("e", "?", "9"))


def test_a_blank_picture_has_the_size_of_what_it_replaces_and_one_colour():
    grey = io.BytesIO()
    Image.new("RGB", (5, 4), (128, 128, 128)).save(grey, "PNG")
    blank = sample("b", "?", "7")
    blank = Sample("b", 0, (Turn("user", (ImageRef(grey.getvalue(), "grey"), "?")), Turn("assistant", ("7",))))
    own = sample("a", "?", "7", picture=1)
    made = of_kind("blank_picture", own, blank)
    assert set(made) == {"a"}
    new = load_image(made["a"].sample.images[0])
    assert new.size == load_image(own.images[0]).size
    assert len(new.getcolors()) == 1


def test_the_last_turn_is_corrupted_and_pictures_of_the_assistant_stay():
    drawn = ImageRef(png(9), "drawn.png")
    before = (Turn("user", ("First?",)), Turn("assistant", ("The answer is 3.", drawn)))
    own = sample("a", "And?", "2 + 3 = 5. The answer is 5.", picture=1, before=before)
    other = sample("b", "And?", "2 + 4 = 6. The answer is 6.", picture=2)
    for one in everything([own, other]):
        if one.anchor == "a":
            assert one.sample.turns[1] == before[1]
            assert one.span is None or one.span[0] >= len("The answer is 3.\n")
    mixed = Turn("assistant", ("See: 4.", drawn, "The answer is ", "5."))
    own = Sample("a", 0, (Turn("user", ("?",)), mixed))
    (one,) = of_kind("wrong_result", own).values()
    assert one.sample.turns[1].parts[:2] == mixed.parts[:2]
    assert answer(one)[: one.span[0]] == "See: 4.The answer is "


def test_what_cannot_go_wrong_is_left_alone():
    assert everything([sample("a", "?", ""), sample("b", "?", "")]) == []
    assert everything([]) == []
    assert {one.kind for one in everything([sample("a", "?", "A dog")])} == set()
    lost = Sample("a", 0, (Turn("user", (ImageRef(b"broken", "x"), "?")), Turn("assistant", ("7",))))
    assert {one.kind for one in everything([lost])} == {"wrong_result"}


def test_most_kinds_apply_to_most_worked_answers():
    for kind in ("digits", "charts"):
        per_kind = Counter(one.kind for one in everything(real_samples(kind)))
        always = ("other_answer", "wrong_step", *PICTURES, "cut_off", "foreign_sentence", "bare_answer")
        assert all(per_kind[name] == 40 for name in always)
        assert all(per_kind[name] >= 20 for name in ("wrong_result", "carried_error", "shuffled_steps"))


def test_what_comes_out_as_it_was_is_no_corruption():
    same = sample("same", "Why?", "So it is. So it is. So it is. The answer is so.")
    kinds = {one.kind for one in everything([same])}
    assert "shuffled_steps" not in kinds  # equal sentences in another order
    assert "cut_off" in kinds
