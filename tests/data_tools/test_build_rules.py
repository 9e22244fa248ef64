"""What a build decides about whole records: too many rejected, hold-out by the question, and answers that are no targets."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_tools.cli import main
from data_tools.planning.planner import make_plan
from data_tools.records.unified import UnifiedWriter, question_hash, text_hash
from data_tools.tokens.build import BuildRequest, build
from data_tools.tokens.shards import choose_holdout
from huatuo_jax.config import DataConfig, SourceMix
from huatuo_jax.data.dialogue import IGNORED, Record
from huatuo_jax.data.rows import PlannedRows
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.errors import DataError
from tests.support.golden_tokenizers import FILES

TOKENIZER = FILES["golden"]


def write_unified(folder: Path, records: list[Record]) -> Path:
    with UnifiedWriter(folder) as writer:
        for record in records:
            writer.write(record)
        writer.finish()
    return folder


def run(folder: Path, out: Path, *arguments) -> int:
    return main(["build", str(folder), "--tokenizer", str(TOKENIZER), "--out", str(out), "--quiet", *map(str, arguments)])


# ---- rejected records


@pytest.fixture(scope="module")
def mostly_rejected(tmp_path_factory) -> Path:
    """40 records of one source, of which 30 have a system prompt, which the huatuo format cannot express."""
    records = [Record(str(i), "sft", (f"问{i}", f"答{i}"), "S" if i % 4 else "") for i in range(40)]
    return write_unified(tmp_path_factory.mktemp("mostly") / "unified", records)


@pytest.mark.parametrize("workers", [1, 2])
def test_too_many_rejected_records_fail_the_build_and_can_be_accepted(mostly_rejected, tmp_path, capsys, workers):
    out = tmp_path / "tokens"
    assert run(mostly_rejected, out, "--workers", workers) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "30 of 40 records (75.00%) are rejected, more than --max-rejected 1.00%" in said and "system prompt" in said
    assert len((out / "rejected.jsonl").read_text().splitlines()) == 30
    with pytest.raises(DataError, match="or says why it cannot"):
        TokenDataset.open(out)
    shards = {path: path.stat().st_mtime_ns for path in out.rglob("*.tokens")}
    # What was tokenised is used: the same files, and a dataset of the ten records that are left.
    assert run(mostly_rejected, out, "--workers", workers, "--max-rejected", "0.75") == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.tokens")} == shards
    assert TokenDataset.open(out).count("sft") == 10


@pytest.mark.parametrize(("rejected", "code"), [(0, 0), (1, 0), (2, 1)])
def test_the_limit_is_one_in_a_hundred(tmp_path, rejected, code):
    records = [Record(str(i), "sft", (f"问{i}", "答"), "S" if i < rejected else "") for i in range(100)]
    assert run(write_unified(tmp_path / "unified", records), tmp_path / "tokens") == code


@pytest.mark.parametrize("workers", [1, 2])
def test_a_source_of_which_nothing_is_left_is_found_before_anything_is_written(tmp_path, capsys, workers):
    records = [Record(str(i), "good", (f"问{i}", "答")) for i in range(50)]
    records += [Record(str(i), "bad", (f"问{i}", "答"), "S") for i in range(5)]
    unified = write_unified(tmp_path / "unified", records)
    assert run(unified, tmp_path / "tokens", "--workers", workers, "--max-rejected", "1") == 1
    assert "every training record of bad is rejected (the first, 0: the huatuo format" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (tmp_path / "tokens").exists()


# ---- the hold-out


def test_other_answers_to_a_held_out_question_are_not_trained(tmp_path):
    # 20 questions; each has an answer in both sources, spelled in another way in the second, and the first ten have two there.
    first = [Record(str(i), "a", (f"头痛 {i} 怎么办？", f"答案{i}")) for i in range(20)]
    second = [Record(str(i), "b", (f"头痛{i}怎么办?\n", f"另一个答案{i}")) for i in range(20)]
    second += [Record(f"x{i}", "b", (f"头痛{i}怎么办", "第三个答案", "谢谢", "不客气")) for i in range(10)]
    unified = write_unified(tmp_path / "unified", first + second)
    assert run(unified, tmp_path / "tokens", "--holdout", 4) == 0
    dataset = TokenDataset.open(tmp_path / "tokens")
    tokenizer = dataset.load_tokenizer()
    numbers = {}
    for split in ("train", "holdout"):
        texts = [tokenizer.decode(tokens.tolist()) for tokens, _ in dataset.read(np.arange(dataset.offsets(split)[-1]), split)]
        numbers[split] = {int("".join(filter(str.isdigit, text.split("<答>")[0]))) for text in texts}
    assert not numbers["train"] & numbers["holdout"] and numbers["holdout"]
    assert dataset.count("a", "holdout") <= 4 and 1 <= dataset.count("b", "holdout") <= 4


def test_questions_are_the_same_but_for_blanks_punctuation_case_and_width():
    ask = lambda *turns, system="": question_hash(Record("1", "s", turns, system))
    same = [
        ask("头痛怎么办？", "a"),
        ask("头痛 怎么办?\n", "b"),
        ask("头痛怎么办", "c", "d", "e"),
        ask("头痛怎么办？", "a", system="S"),
    ]
    assert len(set(same)) == 1
    assert ask("What is Ａ flu?", "a") == ask("what is a FLU", "b") != ask("What is B flu?", "a")
    assert ask("1 < 2", "a") != ask("1 < 3", "a") and ask("？", "a") != ask("！", "a")
    assert ask("a", "q") != ask("q", "a")
    passage = Record("1", "s", text="头痛怎么办？")
    assert question_hash(passage) == text_hash(passage)


def test_the_hold_out_of_distinct_questions_is_that_of_their_texts():
    rng = np.random.default_rng(0)
    texts = rng.integers(0, 2**63, 200).astype(np.uint64)
    texts[100:150] = texts[:50]  # copies have the same text and question
    questions = texts * np.uint64(2654435761)
    sources = rng.integers(0, 3, 200)
    np.testing.assert_array_equal(choose_holdout(sources, texts, "abc", 10, questions), choose_holdout(sources, texts, "abc", 10))


def test_questions_fall_on_one_side_whatever_their_texts_are():
    rng = np.random.default_rng(1)
    for count in (1, 5, 20):
        texts, sources = np.arange(300, dtype=np.uint64), rng.integers(0, 3, 300)
        questions = rng.integers(0, 120, 300).astype(np.uint64)
        held_out = choose_holdout(sources, texts, "abc", count, questions)
        assert not set(questions[held_out]) & set(questions[~held_out])
        assert np.all(np.bincount(sources[held_out], minlength=3) <= count) and held_out.any()


# ---- answers that are no targets, from the file to the row


def test_an_answer_of_weight_0_is_a_target_nowhere(tmp_path):
    turns = [("问一", "坏答案"), ("问二", "好答案"), ("问三", "坏答案"), ("问四", "好答案")]
    rows = []
    for i in range(30):
        messages = []
        for question, answer in turns:
            messages.append({"role": "user", "content": f"{question}{i}"})
            messages.append({"role": "assistant", "content": answer, "weight": int(answer == "好答案")})
        rows.append({"messages": messages if i % 2 else messages[:-2] + messages[2:4], "id": str(i)})
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["import", str(tmp_path / "sft.jsonl"), "--out", str(tmp_path / "unified"), "--quiet"]) == 0
    assert run(tmp_path / "unified", tmp_path / "tokens") == 0
    dataset = TokenDataset.open(tmp_path / "tokens")
    tokenizer = dataset.load_tokenizer()
    good = tokenizer.encode("好答案")
    # The tokens of the answers with weight 1, each with the end that follows it: of two answers per record.
    for tokens, targets in dataset.read(np.arange(30)):
        assert targets[targets != IGNORED].tolist() == [*good, tokenizer.eos_id] * 2
        assert tokenizer.decode(tokens.tolist()).count("坏答案") == 2
    plan = make_plan(dataset, DataConfig(mixture={"sft": SourceMix(priority=1)}, sequence_length=128))
    packed = PlannedRows(plan, dataset)
    in_rows = np.concatenate([packed[i]["targets"] for i in range(len(packed))])
    assert sorted(in_rows[in_rows != IGNORED].tolist()) == sorted([*good, tokenizer.eos_id] * 60)
    assert plan.manifest["statistics"]["target_tokens"] == 60 * (len(good) + 1)


def test_the_sizes_of_weighted_records_are_those_of_their_targets(tmp_path):
    weights = [(1, 0), (0, 1), (), (1, 0), (0, 1)]
    records = [Record(str(i), "sft", ("问题", "回答" * 9, "问题", "回答" * (i + 1)), weights=w) for i, w in enumerate(weights)]
    build(BuildRequest((write_unified(tmp_path / "unified", records),), TOKENIZER, tmp_path / "tokens"))
    dataset = TokenDataset.open(tmp_path / "tokens")
    learned = [np.flatnonzero(targets != IGNORED) for _, targets in dataset.read(np.arange(5))]
    assert dataset.target_counts("sft").tolist() == [len(places) for places in learned]
    assert dataset.first_targets("sft").tolist() == [places[0] for places in learned]
    # A row that ends within the last answer: what is left of the targets is counted right where they have gaps.
    for length in (12, 20, 30):
        plan = make_plan(dataset, DataConfig(mixture={"sft": SourceMix(priority=1)}, sequence_length=length))
        left = sum(np.count_nonzero((places > 0) & (places < length)) for places in learned)
        assert plan.manifest["statistics"]["target_tokens"] == left
