"""Heat maps: words add up to their tokens, shades follow strength, and texts stay texts."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import pytest

from onesteptrain.reporting.heat import Word, heat_map, heat_scale, join_words, shade_of


class Spans(HTMLParser):
    """Texts, tags and the class of each coloured text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.shades, self.text, self.open = [], {}, "", []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open.append(dict(attributes).get("class", ""))

    def handle_endtag(self, tag):
        self.open.pop()

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1].startswith("heat"):
            self.shades[data] = self.open[-1].split()[1]


def test_words_add_up_to_their_tokens():
    answer = "A straw-\nberry is red."
    places = [(0, 1), (1, 4), (4, 8), (8, 9), (9, 14), (14, 17), (17, 21), (21, 22), (22, 22)]
    utility = [0.5, -1.0, 0.25, 9.0, 2.0, -3.0, 0.125, 0.0625, 7.0]  # 9: a blank; 7: end of turn
    words = join_words(answer, places, utility)
    assert [answer[word.start : word.end] for word in words] == answer.split()
    assert [word.utility for word in words] == [0.5, -0.75, 2.0, -3.0, 0.1875]


def test_a_word_outside_the_loss_has_no_utility_and_no_colour():
    (said, learned) = join_words("said learned", [(5, 12)], [-1.0])
    assert math.isnan(said.utility)
    assert Spans(heat_map("said learned", [said, learned], 1.0)).shades == {"learned": "harm4"}


def test_places_and_utilities_must_match():
    with pytest.raises(ValueError, match="argument 2"):
        join_words("one", [(0, 3)], [1.0, 2.0])


def test_the_colour_follows_sign_and_strength():
    assert [shade_of(value, 2.0) for value in (-2.0, -1.2, -0.6, -0.2, -0.1, 0.0)] == [
        "harm4",
        "harm3",
        "harm2",
        "harm1",
        "",
        "",
    ]
    assert [shade_of(value, 2.0) for value in (0.2, 0.6, 1.2, 9.0)] == ["help1", "help2", "help3", "help4"]


def test_the_full_colour_is_what_19_of_20_words_do_not_reach():
    words = [Word(0, 1, (-1) ** size * size) for size in range(101)]
    assert heat_scale(words) == pytest.approx(95)
    assert heat_scale([Word(0, 1, math.nan)]) == heat_scale([Word(0, 1, 0.0)]) == heat_scale([]) == 1.0


@pytest.mark.parametrize(
    "answer", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a\0b \u202eevil", "\ud800", "&lt;b&gt;"]
)
def test_hostile_answers_stay_text(answer):
    words = join_words(answer, [(0, len(answer))], [-1.0])
    page = Spans(heat_map(answer, words, 1.0))
    assert set(page.tags) == {"div", "span"}
    unseen = dict.fromkeys([0, 0x202E, 0xD800], "\ufffd")
    assert page.text == answer.translate(unseen)
    page.text.encode()


def test_a_word_of_a_megabyte_is_cut():
    answer = "x" * 1_000_000
    page = heat_map(answer, join_words(answer, [(0, len(answer))], [1.0]), 1.0)
    assert len(page) < 4000
    assert "3000 of 1000000 characters" in page
