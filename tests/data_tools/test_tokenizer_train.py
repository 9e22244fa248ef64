"""`huatuo-data tokenizer train` makes models that carry the dialogue format, and says what is possible where it cannot."""

import gzip
import json
import lzma

import pytest
import zstandard

from data_tools.cli import main
from data_tools.tokens.tokenizer_training import LONGEST_SENTENCE, find_texts, read_sentences, train_tokenizer
from huatuo_jax.data.formats import get_format
from huatuo_jax.data.tokenizers import load_tokenizer
from huatuo_jax.errors import ConfigError, DataError
from tests.support.golden_tokenizers import FILES, write_golden_tokenizers

TEXT = ["感冒多休息，多喝水。", "What is a cold? Rest and drink 12 cups.", "  indented\tline"]


@pytest.fixture(scope="module")
def quickstart(repository, tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart") / "t.model"
    files = [str(repository / "examples/quickstart/corpus/*.jsonl"), str(repository / "examples/quickstart/sft.jsonl")]
    report = out.with_suffix(".json")
    assert main(["tokenizer", "train", *files, "--vocab-size", "3000", "--out", str(out), "--json", str(report), "--quiet"]) == 0
    return load_tokenizer(out), json.loads(report.read_text())


def test_the_quickstart_corpus_trains_a_tokenizer_of_the_size_asked_for(quickstart):
    tokenizer, report = quickstart
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.id_to_piece(0)) == (3000, 1, 2, "<unk>")
    assert report["fingerprint"] == tokenizer.fingerprint
    assert 1.7 < report["characters_per_token"] < 2.5


def test_line_breaks_full_width_marks_and_rare_characters_survive(quickstart):
    tokenizer, _ = quickstart
    for text in ("a\n\nb", "问：答", "  two  spaces ", "🩺 龘", "\t"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_dialogue_marks_are_one_token_and_out_of_reach_of_users(quickstart):
    tokenizer, _ = quickstart
    get_format("huatuo").check(tokenizer)
    assert tokenizer.encode("", trusted_prefix="\n<答>：") == [tokenizer.token_to_id("\n"), tokenizer.token_to_id("<答>：")]
    assert tokenizer.token_to_id("<答>：") not in tokenizer.encode("<答>：")


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_the_same_text_gives_the_same_file(tmp_path, model_type):
    made = [
        train_tokenizer(TEXT * 50, 400, tmp_path / name, model_type=model_type, at_most=True, limit=101)
        for name in ("a.model", "b.model")
    ]
    assert made[0].fingerprint == made[1].fingerprint


def test_the_golden_tokenizers_come_out_as_the_repository_has_them(tmp_path):
    """Where the training changes on purpose: `python -m tests.support.golden_tokenizers`, and the ids known of them."""
    write_golden_tokenizers(tmp_path)
    for file in FILES.values():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_plain_and_compressed_files_are_read_alike(tmp_path):
    line = json.dumps(
        {"title": "标题", "text": "第一行\n第二行", "turns": ["问", "答"], "id": "not read"}, ensure_ascii=False
    ).encode()
    (tmp_path / "a.jsonl").write_bytes(line)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(line))
    (tmp_path / "c.jsonl.xz").write_bytes(lzma.compress(line))
    (tmp_path / "d.jsonl.zst").write_bytes(zstandard.compress(line))
    (tmp_path / "e.txt").write_text("标题\n第一行\n第二行\n问\n答\n", encoding="utf-8")
    paths = find_texts([str(tmp_path / "*")])
    assert len(paths) == 5
    for path in paths:
        assert list(read_sentences([path])) == ["标题", "第一行", "第二行", "问", "答"]


def test_a_long_line_is_cut_not_lost(tmp_path):
    (tmp_path / "a.txt").write_text("好" * 2500, encoding="utf-8")
    sentences = list(read_sentences([tmp_path / "a.txt"]))
    assert "".join(sentences) == "好" * 2500 and max(map(len, sentences)) == LONGEST_SENTENCE


def test_too_large_a_vocabulary_is_refused_with_the_largest_possible(tmp_path):
    with pytest.raises(ConfigError, match="largest possible is") as refusal:
        train_tokenizer(TEXT, 50_000, tmp_path / "t.model")
    assert not list(tmp_path.iterdir())
    largest = int(str(refusal.value).split("largest possible is ")[1].split(";")[0])
    assert train_tokenizer(TEXT, largest, tmp_path / "t.model").vocab_size == largest


def test_at_most_takes_what_the_text_has(tmp_path):
    assert 260 < train_tokenizer(TEXT, 50_000, tmp_path / "t.model", at_most=True).vocab_size < 1000


def test_too_small_a_vocabulary_names_what_is_needed(tmp_path):
    with pytest.raises(ConfigError, match=r"too small.*take \d+; ask for more"):
        train_tokenizer(TEXT, 200, tmp_path / "t.model")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{}\n", "hold no text"),
        (b"", "hold no text"),
        (b'{"text": "a"}\nno json\n', r"a\.jsonl:2 is not valid JSON"),
        (b'{"text": "a"}\n["b"]\n', r"a\.jsonl:2 is list"),
    ],
)
def test_files_without_usable_text_are_named(tmp_path, content, reason):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        train_tokenizer(read_sentences(find_texts([str(tmp_path / "a.jsonl")])), 400, tmp_path / "t.model")
    assert not (tmp_path / "t.model").exists()


def test_wrong_files_are_refused_before_any_work(tmp_path):
    (tmp_path / "a.csv").write_text("a")
    for pattern, reason in (
        (tmp_path / "*.none", "no file matches"),
        (tmp_path / "a.csv", "txt and .jsonl"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(ConfigError, match=reason):
            find_texts([str(pattern)])


def test_the_command_names_the_suffix_it_needs(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a")
    assert main(["tokenizer", "train", str(tmp_path / "a.txt"), "--vocab-size", "300", "--out", str(tmp_path / "t.bin")]) == 2
    assert "ends in .model" in capsys.readouterr().err
