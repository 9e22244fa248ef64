import json

import numpy as np
import pytest

from data_tools.cli import main
from data_tools.planning.row_text import render
from tests.support.token_folder import assembled, write_tokens

EOS = 2


class Letters:
    """Decodes an id as the character with that code; EOS as nothing, as SentencePiece does."""

    eos_id = EOS

    def decode(self, ids):
        return "".join(chr(i) for i in ids if i != EOS)

    def id_to_piece(self, id):
        return chr(id)


def example(*pieces):
    """Pieces of (text, learned)."""
    tokens = [ord(c) for text, _ in pieces for c in text]
    targets = [ord(c) if learned else -100 for text, learned in pieces for c in text]
    return np.array([*tokens, EOS], np.int32), np.array([*targets, EOS], np.int32)


@pytest.fixture
def two_turns():
    tokens, targets = example(("Q: hi\nA: ", False), ("yes", True), ("\nQ: and?\nA: ", False), ("no", True))
    targets[12] = EOS
    return tokens, targets


@pytest.mark.parametrize("packing", ["first_fit", "faithful"])
def test_targets_stand_between_marks_without_colour(two_turns, packing):
    row = assembled([two_turns], [0], 40, packing)
    assert render(row, 0, 27, Letters(), "").plain == "Q: hi\nA: «yes»⟨→EOS⟩\nQ: and?\nA: «no⟨EOS⟩»"


def test_colour_takes_the_place_of_marks(two_turns):
    row = assembled([two_turns], [0], 40, "first_fit")
    text = render(row, 0, 27, Letters(), "cyan")
    assert text.plain == "Q: hi\nA: yes⟨→EOS⟩\nQ: and?\nA: no⟨EOS⟩"
    assert [text.plain[s.start : s.end] for s in text.spans if s.style == "bold cyan"] == ["yes", "no⟨EOS⟩"]


def test_a_second_example_is_shown_on_its_own(two_turns):
    row = assembled([two_turns, example(("q", False), ("a", True))], [0, 0], 40, "first_fit")
    assert render(row, 27, 30, Letters(), "").plain == "q«a⟨EOS⟩»"


@pytest.fixture
def plan(tmp_path, baichuan_like):
    from huatuo_jax.data.dialogue import Record, encode_record
    from huatuo_jax.data.formats import get_format

    tokenizer = baichuan_like
    facts = {"path": tokenizer.path, "fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size, "eos_id": 2}
    record = Record("1", "sft", ("头痛怎么办？", "多休息，[bold]少熬夜。", "要吃药吗？", "请先就医。"))
    encoded = encode_record(record, tokenizer, get_format("huatuo"))
    tokens = write_tokens(tmp_path / "tokens", {"sft": [(encoded.tokens, encoded.targets)]}, tokenizer=facts)
    mixture = tmp_path / "mixture.json"
    mixture.write_text('{"sft": {}}')
    flags = ["--mixture-file", str(mixture), "--sequence-length", "64", "--out", str(tmp_path / "plan"), "--quiet"]
    assert main(["plan", str(tokens), *flags]) == 0
    return tmp_path / "plan"


def test_a_real_dialogue_is_shown_with_its_targets(plan, tmp_path, capsys):
    report = tmp_path / "row.json"
    flags = ["--row", "0", "--no-color", "--json", str(report)]
    assert main(["inspect", str(plan), *flags]) == 0
    shown = capsys.readouterr().out
    assert "<问>：头痛怎么办？\n<答>：«多休息，[bold]少熬夜。»⟨→EOS⟩\n<问>：要吃药吗？\n<答>：«请先就医。⟨EOS⟩»" in shown
    assert "1 · sft · record 0" in shown
    assert json.loads(report.read_text())["segments"][0]["source"] == "sft"


def test_a_row_that_is_not_there_is_refused(plan, tmp_path, capsys):
    assert main(["inspect", str(plan), "--tokens", str(tmp_path / "tokens"), "--row", "1"]) == 2
    assert "the plan has rows 0 to 0" in capsys.readouterr().err


def test_another_tokenizer_is_refused(plan, tmp_path, tokenizer_named, capsys):
    other = str(tokenizer_named("golden dummy prefix"))
    assert main(["inspect", str(plan), "--tokens", str(tmp_path / "tokens"), "--tokenizer", other]) == 2
    assert "is not the tokenizer that made the tokens" in capsys.readouterr().err
