"""The build of the token dataset: what is kept, held out, rejected and cut; and that an interruption changes nothing."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_tools.cli import main
from data_tools.records.unified import UnifiedDataset, UnifiedWriter
from data_tools.tokens import shards
from data_tools.tokens.build import BuildRequest, build
from data_tools.tokens.shards import choose_holdout, plan_shards
from huatuo_jax.data.dialogue import Record
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.errors import ConfigError, DataError


def write_unified(folder: Path, records: list[Record]) -> Path:
    with UnifiedWriter(folder) as writer:
        for record in records:
            writer.write(record)
        writer.finish()
    return folder


def dialogues(count: int, source: str = "sft", system: str = "") -> list[Record]:
    return [Record(f"{source}{i}", source, (f"{source}问题{i}？", "回答" * (i % 7 + 1)), system) for i in range(count)]


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def tokenizer(baichuan_like) -> Path:
    return Path(baichuan_like.path)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_RECORDS", 20)


def test_every_record_is_kept_held_out_or_rejected(tmp_path, tokenizer):
    records = [*dialogues(30), *dialogues(5, "other", system="S"), *dialogues(20, "other")]
    unified = write_unified(tmp_path / "unified", records)
    report = build(BuildRequest((unified,), tokenizer, tmp_path / "tokens", holdout=4))
    for source, count in (("sft", 30), ("other", 25)):
        entry = report["sources"][source]
        assert entry["train"]["records"] + entry["holdout"]["records"] + entry["rejected"] == count
        assert entry["train"]["tokens"] == TokenDataset.open(tmp_path / "tokens").lengths(source).sum()
    lines = [json.loads(line) for line in (tmp_path / "tokens" / "rejected.jsonl").read_text().splitlines()]
    assert sorted(one["id"] for one in lines) == [f"other{i}" for i in range(5)]
    assert all("no place for a system prompt" in one["reason"] for one in lines)


def test_a_source_of_which_nothing_is_left_is_an_error(tmp_path, tokenizer):
    unified = write_unified(tmp_path / "unified", dialogues(5, system="S"))
    with pytest.raises(DataError, match=r"every training record of sft is rejected .* choose another dialogue format"):
        build(BuildRequest((unified,), tokenizer, tmp_path / "tokens"))
    assert not (tmp_path / "tokens" / "manifest.json").exists()


def test_records_beyond_the_cap_are_cut_and_counted(tmp_path, tokenizer):
    unified = write_unified(tmp_path / "unified", [Record("1", "books", text="心脏" * 100), Record("2", "books", text="肺")])
    entry = build(BuildRequest((unified,), tokenizer, tmp_path / "tokens", max_len=10))["sources"]["books"]
    lengths = TokenDataset.open(tmp_path / "tokens").lengths("books")
    assert lengths.tolist() == [10, 2]
    assert entry["cut"] == 1 and entry["cut_tokens"] > 50


def test_duplicates_fall_on_one_side():
    texts = np.array([7, 7, 3, 3, 5, 5, 1, 2, 9, 9], np.uint64)
    sources = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 0])
    for count in (1, 2, 3):
        held_out = choose_holdout(sources, texts, ["a", "b"], count)
        assert all(len(set(held_out[texts == text])) == 1 for text in texts)
        assert np.all(np.bincount(sources[held_out], minlength=2) <= count)
    assert held_out.sum() == 6


def test_holdout_does_not_depend_on_the_order_of_records():
    rng = np.random.default_rng(0)
    texts, sources = rng.integers(0, 50, 200).astype(np.uint64), rng.integers(0, 3, 200)
    shuffled = rng.permutation(200)
    held_out = choose_holdout(sources, texts, "abc", 10)
    np.testing.assert_array_equal(choose_holdout(sources[shuffled], texts[shuffled], "abc", 10), held_out[shuffled])


def test_a_holdout_that_leaves_nothing_is_refused(tmp_path, tokenizer, capsys):
    unified = write_unified(tmp_path / "unified", [*dialogues(30), *dialogues(3, "tiny")])
    arguments = ["build", str(unified), "--tokenizer", str(tokenizer), "--out", str(tmp_path / "tokens"), "--holdout", "3"]
    assert main([*arguments, "--quiet"]) == 2
    assert "nothing to train on in tiny (3); give at most 2" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_tokenizer_that_cannot_carry_the_format_leaves_nothing(tmp_path, llama_like, small_shards, workers):
    unified = write_unified(tmp_path / "unified", dialogues(100))
    with pytest.raises(ConfigError, match="dialogue format chatml does not work with"):
        build(BuildRequest((unified,), Path(llama_like.path), tmp_path / "tokens", dialogue_format="chatml", workers=workers))
    assert not (tmp_path / "tokens").exists()


def test_shards_are_bounded_and_hold_every_record_once(tmp_path, small_shards):
    records = [Record(str(i), "books", text="长" * (1000 if i < 10 else 10)) for i in range(105)]
    tasks = plan_shards([UnifiedDataset(write_unified(tmp_path / "unified", records))], 0)
    assert len(tasks) == 6
    assert np.concatenate([task.records for task in tasks]).tolist() == list(range(105))
    assert max(len(task.records) for task in tasks) <= 40
    assert min(len(task.records) for task in tasks) > 0


def test_workers_do_not_change_the_bytes(tmp_path, tokenizer, small_shards):
    first = write_unified(tmp_path / "first", [*dialogues(70), *dialogues(30, "books")])
    second = write_unified(tmp_path / "second", dialogues(25, "late"))
    for workers in (1, 2):
        build(BuildRequest((first, second), tokenizer, tmp_path / str(workers), holdout=3, workers=workers))
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert TokenDataset.open(tmp_path / "1").sources == ("books", "late", "sft")


FORKED = """
import multiprocessing, sys
from data_tools.cli import main
main(["--help"])  # sets what numpy reads when the next lines import it
from data_tools.tokens import shards
shards.SHARD_RECORDS = 20
context_of = multiprocessing.get_context
def get_context(method):
    # Where the process has more than one thread, workers are spawned.
    return context_of("fork") if method == "fork" else sys.exit("the process of huatuo-data has more than one thread")
multiprocessing.get_context = get_context
sys.exit(main(["build", *sys.argv[1:]]))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="workers are forked on Linux only")
def test_the_command_forks_its_workers_and_that_does_not_change_the_bytes(tmp_path, tokenizer, small_shards, repository):
    unified = write_unified(tmp_path / "unified", dialogues(50))
    build(BuildRequest((unified,), tokenizer, tmp_path / "1"))
    arguments = [str(unified), "--tokenizer", str(tokenizer), "--out", str(tmp_path / "2"), "--workers", "2"]
    subprocess.run([sys.executable, "-c", FORKED, *arguments], cwd=repository, check=True, timeout=120)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_second_run_has_nothing_to_do(tmp_path, tokenizer, capsys):
    unified = write_unified(tmp_path / "unified", dialogues(10))
    arguments = ["build", str(unified), "--tokenizer", str(tokenizer), "--out", str(tmp_path / "tokens"), "--workers", "1"]
    assert main(arguments) == 0
    before = contents(tmp_path / "tokens")
    assert "nothing to do" not in capsys.readouterr().out
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert contents(tmp_path / "tokens") == before


def test_other_settings_are_refused_with_old_and_new(tmp_path, tokenizer):
    unified = write_unified(tmp_path / "unified", dialogues(10))
    build(BuildRequest((unified,), tokenizer, tmp_path / "tokens"))
    with pytest.raises(ConfigError, match=r"holdout: 0 → 2.*give another --out"):
        build(BuildRequest((unified,), tokenizer, tmp_path / "tokens", holdout=2))


def test_a_folder_with_other_things_is_left_alone(tmp_path, tokenizer):
    unified = write_unified(tmp_path / "unified", dialogues(10))
    with pytest.raises(ConfigError, match="is not empty and holds no token dataset"):
        build(BuildRequest((unified,), tokenizer, tmp_path))


def test_a_torn_unified_dataset_is_refused(tmp_path, tokenizer):
    unified = write_unified(tmp_path / "unified", dialogues(10))
    shard = next(unified.glob("*.array_record*"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"the manifest says .* import the files again"):
        build(BuildRequest((unified,), tokenizer, tmp_path / "tokens"))


KILLED = """
import sys
from pathlib import Path
from data_tools.tokens import shards
from data_tools.tokens.build import BuildRequest, build
shards.SHARD_RECORDS = 20
build(BuildRequest((Path(sys.argv[1]),), Path(sys.argv[2]), Path(sys.argv[3]), holdout=5, workers=2))
"""


def test_a_killed_build_continues_to_the_same_bytes(tmp_path, tokenizer, small_shards, repository):
    records = [Record(str(i), "sft", (f"问题{i}？", "很长的回答。" * 2000)) for i in range(300)]
    unified = write_unified(tmp_path / "unified", records)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    build(BuildRequest((unified,), tokenizer, whole, holdout=5))
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(unified), str(tokenizer), str(killed)], cwd=repository)
    try:
        deadline = time.monotonic() + 60
        while not list(killed.glob("sft/.done/*.npz")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = len(list(killed.glob("sft/.done/*.npz")))
    assert not (killed / "manifest.json").exists()
    assert 0 < done < 16
    with pytest.raises(DataError, match="interrupted"):
        TokenDataset.open(killed)
    with pytest.raises(ConfigError, match="other settings"):
        build(BuildRequest((unified,), tokenizer, killed, holdout=6))
    report = build(BuildRequest((unified,), tokenizer, killed, holdout=5))
    assert report["new_records"] < 300
    assert contents(killed) == contents(whole)


@pytest.mark.parametrize("torn", ["*.tokens", ".done/*.npz"])
def test_a_shard_that_changed_since_its_marker_is_built_again(tmp_path, tokenizer, small_shards, torn):
    unified = write_unified(tmp_path / "unified", dialogues(50))
    whole, broken = (BuildRequest((unified,), tokenizer, tmp_path / name) for name in ("whole", "broken"))
    build(whole)

    def stop(done: int) -> None:
        if list((tmp_path / "broken" / "sft" / ".done").glob("*")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(broken, on_done=stop)
    (file,) = (tmp_path / "broken" / "sft").glob(torn)
    file.write_bytes(b"torn")
    build(broken)
    assert contents(tmp_path / "whole") == contents(tmp_path / "broken")
