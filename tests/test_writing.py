import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onesteptrain.data.formats.schemas import Reading, read_turns
from onesteptrain.data.formats.writing import to_row
from onesteptrain.data.pool import ImageRef, Turn
from onesteptrain.errors import SampleError

PIECES = st.lists(st.sampled_from(["picture", "What?", "\nTwo\n", " ", "ß\n\n", "\n"]), min_size=1, max_size=5).filter(
    lambda pieces: "".join(pieces).strip()  # an empty question is refused
)
LOSSES = st.sampled_from([(1.0, ()), (0.5, ()), (1.0, ((0, 3),)), (2.0, ((4, 6), (7, 10)))])


@given(questions=st.lists(PIECES, min_size=1, max_size=2), system=st.booleans(), inside=st.booleans(), loss=LOSSES)
def test_a_conversation_written_as_a_row_is_read_again(questions, system, inside, loss):
    """The reader is the oracle; adjoining texts are one text to it."""
    image = ImageRef(Path("/pictures/a/x.png") if inside else b"bytes", "x")
    turns = [Turn("system", ("Be brief.",))] if system else []
    for pieces in questions:
        turns += [Turn("user", tuple(image if piece == "picture" else piece for piece in pieces))]
        turns += [Turn("assistant", ("Yes it is.\n",), *loss)]
    row = to_row(turns, Path("/pictures/a" if inside else "/"))
    again = read_turns(json.loads(json.dumps(row)), Reading(image_root=Path("/pictures/a" if inside else "/")))
    assert [turn.role for turn in again] == [turn.role for turn in turns]
    assert [joined(turn) for turn in again] == [joined(turn) for turn in turns]
    assert [(turn.weight, turn.unlearned) for turn in again] == [(turn.weight, turn.unlearned) for turn in turns]


def joined(turn):
    """Texts that adjoin put together, and what the pictures are."""
    pieces = []
    for part in turn.parts:
        if isinstance(part, str) and pieces and isinstance(pieces[-1], str):
            pieces[-1] += part
        else:
            pieces.append(part if isinstance(part, str) else (part.source,))
    return [piece for piece in pieces if piece != ""]


def test_a_text_that_holds_the_mark_of_a_picture_is_written_beside_pictures_alone():
    turns = (Turn("user", ("Say <image>.",)), Turn("assistant", ("<image>",)))
    with pytest.raises(SampleError, match="would be read as a picture"):
        to_row(turns, Path("/"))
    turns = (Turn("user", (ImageRef(Path("/a.png"), "a.png"), "Say <image>.")), *turns[1:])
    assert read_turns(to_row(turns, Path("/")), Reading(image_root=Path("/"))) == turns
