"""Whole runs: the same bytes whatever the workers, continuing after a kill, reruns, changed settings, the report, bad input."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard

from data_tools.cli import main as huatuo_data

MEDICAL = (
    "患者因反复发热、咳嗽伴胸痛入院，胸片提示肺炎，给予青霉素静脉滴注治疗，"
    "第{}天体温恢复正常，血常规白细胞计数下降至{}，准予出院随访。"
)
OTHER = "本市第{}届桥梁工程展览会昨日开幕，共有{}家企业参加，展出了新型钢结构与混凝土材料，吸引了众多工程师前来参观交流。"
SETTINGS = ("--domain", "medicine")


def corpus(folder, files=4, rows=30):
    folder.mkdir(parents=True)
    for number in range(files):
        lines = [
            {"text": (OTHER if i % 3 == 2 else MEDICAL).format(number * rows + i, i * 37 % 101), "source": f"source_{number % 2}"}
            for i in range(rows)
        ]
        lines.append({"text": MEDICAL.format(0, 0), "source": f"source_{number % 2}"})
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"part{number}.jsonl").write_text(content, encoding="utf-8")
    return folder


def collect(*words, code=0):
    assert huatuo_data(["collect", *map(str, words), "--quiet"]) == code


def output(out):
    """Hash of every file that a run hands over; times in the report are no result."""
    paths = [path for path in sorted(out.rglob("*")) if path.is_file() and "work" not in path.relative_to(out).parts]
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if not path.name.startswith("report")
    }


def passages(out):
    rows = []
    for path in sorted((out / "passages").iterdir()):
        rows += [json.loads(line) for line in zstandard.decompress(path.read_bytes(), 1 << 26).splitlines()]
    return rows


def test_a_run_keeps_the_domain_and_one_copy_from_the_preferred_source(tmp_path):
    raw = corpus(tmp_path / "raw")
    collect(raw, *SETTINGS, "--near-threshold", 0.999, "--source-priority", "source_1,source_0", "--out", tmp_path / "out")
    rows = passages(tmp_path / "out")
    assert len(rows) == 80  # two thirds of 4 × 30; the last line of each file is the first one of the first file
    assert all("患者" in row["text"] for row in rows)
    assert [row["source"] for row in rows if row["text"] == MEDICAL.format(0, 0)] == ["source_1"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["steps"]["raw"]["texts"] == 124 and report["drops"]["out of domain"]["texts"] == 40
    assert report["drops"]["exact duplicate"]["by_source"] == {"source_0": 3, "source_1": 1}


def test_every_dropped_byte_has_a_reason(tmp_path):
    raw = corpus(tmp_path / "raw")
    collect(raw, *SETTINGS, "--keep-dropped", "--out", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    steps = report["steps"]
    assert steps["raw"]["bytes"] - steps["deduplicated"]["bytes"] == sum(drop["bytes"] for drop in report["drops"].values())
    dropped = []
    for path in (tmp_path / "out" / "dropped").iterdir():
        with open(path, "rb") as file:
            content = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
        dropped += [json.loads(line)["dropped"] for line in content.splitlines()]
    assert {reason: dropped.count(reason) for reason in set(dropped)} == {r: d["texts"] for r, d in report["drops"].items()}


def test_a_dropped_copy_names_the_passage_that_stays(tmp_path):
    (tmp_path / "raw").mkdir()
    rows = {
        "a": [("kept-1", OTHER.format(7, 7)), ("kept-2", MEDICAL.format(0, 0))],
        "b": [("exact", MEDICAL.format(0, 0)), ("near", OTHER.format(7, 7).replace("昨日", "今天"))],
    }
    for name, texts in rows.items():
        lines = "".join(json.dumps({"id": id, "text": text, "source": name}) + "\n" for id, text in texts)
        (tmp_path / "raw" / f"{name}.jsonl").write_text(lines)
    collect(tmp_path / "raw", "--any-domain", "--source-priority", "a", "--keep-dropped", "--out", tmp_path / "out")
    with open(tmp_path / "out" / "dropped" / "b.jsonl.zst", "rb") as file:
        content = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
    dropped = {row["id"]: row for row in map(json.loads, content.splitlines())}
    assert (dropped["exact-0"]["dropped"], dropped["exact-0"]["copy_of"]) == ("exact duplicate", "kept-2-0")
    assert (dropped["near-0"]["dropped"], dropped["near-0"]["copy_of"]) == ("near duplicate", "kept-1-0")


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_of_other_systems_give_the_same_passages(tmp_path, end):
    """Long enough to be cut, so that the cuts must not move either."""
    lines = [f"第{i}章 肺炎的治疗" if i % 5 == 0 else MEDICAL.format(i, i * 37 % 101) for i in range(40)]
    found = []
    for name, between in (("lf", "\n"), ("other", end)):
        (tmp_path / name).mkdir()
        row = {"id": "a", "text": between.join(lines), "title": f"肺炎{between}手册"}
        (tmp_path / name / "raw.jsonl").write_text(json.dumps(row))
        (tmp_path / name / "book.txt").write_bytes(between.join(lines[::-1]).encode())
        words = [*SETTINGS, "--near-threshold", 0, "--disable-rule", "repetition", "--source", "s"]
        collect(tmp_path / name, *words, "--out", tmp_path / f"out-{name}")
        found.append([(row["text"], row.get("title"), row["score"]) for row in passages(tmp_path / f"out-{name}")])
    assert found[0] == found[1] and len(found[0]) > 5 and "\r" not in str(found[1])


def test_workers_change_no_byte(tmp_path):
    raw = corpus(tmp_path / "raw")
    outputs = []
    for workers in (1, 2, 8):
        collect(raw, *SETTINGS, "--workers", workers, "--out", tmp_path / f"out{workers}")
        outputs.append(output(tmp_path / f"out{workers}"))
    assert outputs[0] == outputs[1] == outputs[2] and len(outputs[0]) == 4 + 3


def test_a_rerun_does_only_what_is_missing(tmp_path):
    raw = corpus(tmp_path / "raw")
    words = [raw, *SETTINGS, "--out", tmp_path / "out", "--json", tmp_path / "report.json"]

    def done_now():
        collect(*words)
        return json.loads((tmp_path / "report.json").read_text())["done_now"]

    assert done_now() == {"passages": 4, "duplicates": 1, "output": 4}
    first = output(tmp_path / "out")
    assert done_now() == {"passages": 0, "duplicates": 0, "output": 0}
    (tmp_path / "out" / "passages" / "part1.jsonl.zst").unlink()
    assert done_now() == {"passages": 0, "duplicates": 0, "output": 1} and output(tmp_path / "out") == first
    os.truncate(tmp_path / "out" / "passages" / "part1.jsonl.zst", 100)
    assert done_now() == {"passages": 0, "duplicates": 0, "output": 1} and output(tmp_path / "out") == first
    os.utime(raw / "part0.jsonl")
    assert done_now() == {"passages": 0, "duplicates": 0, "output": 0}
    (raw / "part2.jsonl").write_text((raw / "part2.jsonl").read_text().replace("青霉素", "红霉素"))
    assert done_now() == {"passages": 1, "duplicates": 1, "output": 4} and output(tmp_path / "out") != first
    (raw / "part3.jsonl").unlink()
    assert done_now()["passages"] == 0
    assert sorted(path.name for path in (tmp_path / "out" / "passages").iterdir()) == [f"part{i}.jsonl.zst" for i in range(3)]


@pytest.mark.parametrize(
    "words, changed, again",
    [
        (("--near-threshold", "0.7"), "near.threshold: 0.8 → 0.7", "the passages of all shards kept"),
        (("--threshold", "zh=0.2"), "domain", "every shard's passages"),
        (("--overlap", "0.5"), "overlap.share: 0.6 → 0.5", "only the output"),
    ],
)
def test_changed_settings_say_what_must_be_redone(tmp_path, capsys, words, changed, again):
    raw = corpus(tmp_path / "raw", files=1)
    collect(raw, *SETTINGS, "--out", tmp_path / "out")
    collect(raw, *SETTINGS, *words, "--out", tmp_path / "out", code=2)
    message = capsys.readouterr().err
    assert changed in message and again in message and "--redo" in message
    collect(raw, *SETTINGS, *words, "--redo", "--out", tmp_path / "out")
    collect(raw, *SETTINGS, *words, "--out", tmp_path / "fresh")
    assert output(tmp_path / "out") == output(tmp_path / "fresh")


def test_a_killed_run_continues_to_the_same_bytes(tmp_path):
    raw = corpus(tmp_path / "raw", files=8, rows=400)
    settings = (*SETTINGS, "--near-threshold", "0")
    collect(raw, *settings, "--out", tmp_path / "whole")
    command = [sys.executable, "-c", "from data_tools.cli import main; main()"]
    words = ["collect", str(raw), *settings, "--out", str(tmp_path / "killed"), "--quiet"]
    process = subprocess.Popen([*command, *words])
    while not list((tmp_path / "killed").glob("work/passages/*/done.json")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "manifest.json").exists()
    collect(raw, *settings, "--out", tmp_path / "killed", "--json", tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["done_now"]["passages"] < 8
    assert output(tmp_path / "killed") == output(tmp_path / "whole")


def descendants(process_id, name):
    """Ids of the processes that a run has started, or those have, and whose command line holds a name."""
    found = []
    for task in Path(f"/proc/{process_id}/task").iterdir():
        for child in (task / "children").read_text().split():
            try:
                found += [int(child)] * (name in Path(f"/proc/{child}/cmdline").read_bytes())
                found += descendants(child, name)
            except FileNotFoundError:  # ended meanwhile
                continue
    return found


def kill_a_worker(process, folder, name):
    """Kills a worker once the first shard is done; says how many there were."""
    while not list(folder.glob("work/passages/*/done.json")):
        assert process.poll() is None
        time.sleep(0.005)
    workers = descendants(process.pid, name)
    os.kill(workers[0], signal.SIGKILL)
    assert len(list(folder.glob("work/passages/*/done.json"))) < 8, "the worker was to die in mid-run"
    return len(workers)


@pytest.mark.slow
def test_ray_gives_the_same_bytes_though_a_worker_is_killed(tmp_path):
    pytest.importorskip("ray")
    raw = corpus(tmp_path / "raw", files=8, rows=2_000)
    settings = (*SETTINGS, "--near-threshold", "0")
    collect(raw, *settings, "--out", tmp_path / "whole")
    words = ["collect", str(raw), *settings, "--engine", "ray", "--out", str(tmp_path / "killed"), "--quiet"]
    process = subprocess.Popen([sys.executable, "-c", "from data_tools.cli import main; main()", *words])
    kill_a_worker(process, tmp_path / "killed", b"ray::make_passages")
    assert process.wait(300) == 0
    assert output(tmp_path / "killed") == output(tmp_path / "whole")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to find the workers")
def test_a_worker_killed_in_mid_run_changes_no_byte(tmp_path):
    raw = corpus(tmp_path / "raw", files=8, rows=500)
    settings = (*SETTINGS, "--near-threshold", "0")
    collect(raw, *settings, "--out", tmp_path / "whole")
    words = ["collect", str(raw), *settings, "--workers", "2", "--out", str(tmp_path / "killed"), "--quiet"]
    process = subprocess.Popen([sys.executable, "-c", "from data_tools.cli import main; main()", *words])
    assert kill_a_worker(process, tmp_path / "killed", b"data_tools.cli") == 2
    assert process.wait(120) == 0
    assert output(tmp_path / "killed") == output(tmp_path / "whole")


def test_exam_questions_leave_the_corpus_and_are_listed(tmp_path):
    raw = corpus(tmp_path / "raw", files=2)
    question = {"id": "q", "question": MEDICAL.format(7, 7 * 37 % 101), "options": {"A": "肺炎", "B": "肺癌"}}
    (tmp_path / "exam.jsonl").write_text(json.dumps(question))
    collect(
        raw, *SETTINGS, "--near-threshold", 0, "--overlap", 0.99, "--exams", tmp_path / "exam.jsonl", "--out", tmp_path / "out"
    )
    (entry,) = map(json.loads, (tmp_path / "out" / "contaminated.jsonl").read_text().splitlines())
    assert entry["questions"] == [{"exam": "exam", "item": "q", "share": 1.0}]
    assert question["question"] not in [row["text"] for row in passages(tmp_path / "out")]


def test_a_question_cut_between_passages_leaves_the_corpus_the_same_for_any_workers(tmp_path):
    filler = "".join(MEDICAL.format(i, i) for i in range(6))
    question = "".join(f"第{i}天血压升至{i * 7}毫米汞柱。" for i in range(12, 32)) + "最可能的诊断是"
    (tmp_path / "exam.jsonl").write_text(json.dumps({"question": question, "options": ["甲", "乙"]}))
    (tmp_path / "raw").mkdir()
    for name in "ab":
        text = (filler + question + 3 * filler).replace("患者", f"患者{name}")
        (tmp_path / "raw" / f"{name}.jsonl").write_text(json.dumps({"text": text}))
    words = (*SETTINGS, "--near-threshold", 0, "--disable-rule", "repetition", "--exams", tmp_path / "exam.jsonl")
    for workers in (1, 2):
        collect(tmp_path / "raw", *words, "--workers", workers, "--out", tmp_path / f"out{workers}")
    assert output(tmp_path / "out1") == output(tmp_path / "out2")
    entries = [json.loads(line) for line in (tmp_path / "out1" / "contaminated.jsonl").read_text().splitlines()]
    assert len(entries) == 4 and passages(tmp_path / "out1")
    assert "血压升至" not in "".join(row["text"] for row in passages(tmp_path / "out1"))


def test_long_documents_carry_their_title(tmp_path):
    text = "肺炎的诊治\n" + "".join(MEDICAL.format(i, i) for i in range(30))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "chapter.txt").write_text(text, encoding="utf-8")
    words = (*SETTINGS, "--near-threshold", 0, "--disable-rule", "repetition")
    collect(tmp_path / "raw", *words, "--out", tmp_path / "out")
    rows = passages(tmp_path / "out")
    assert len(rows) > 2 and all(row["title"] == "肺炎的诊治" for row in rows[1:])
    assert "".join(row["text"] for row in rows) == text and "title" not in rows[0]


def personal_corpus(folder):
    """Kept texts, some out of the domain (in one an example ends within the number), one too short: with a phone number each."""
    phone = "13812345678"
    rows = [
        {"text": f"{MEDICAL.format(1, 1)}电话{phone}。", "title": f"肺炎咨询 {phone}"},
        {"text": "桥" * 153 + f"。{phone}。" + OTHER.format(1, 1)},
        {"text": f"联系{phone}。{OTHER.format(2, 2)}"},
        {"text": f"肺炎{phone}"},
    ]
    long_document = f"肺炎专家热线 {phone}\n" + "".join(MEDICAL.format(i, i) for i in range(30))
    folder.mkdir()
    lines = [json.dumps(row, ensure_ascii=False) for row in [*rows, {"text": long_document}]]
    (folder / "raw.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder, phone


def everything_read(out):
    """All that people read of a run: passages, dropped texts and reports."""
    content = ""
    for path in (*out.glob("passages/*"), *out.glob("dropped/*")):
        with open(path, "rb") as file:
            content += zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read().decode()
    return content + (out / "report.json").read_text() + (out / "report.html").read_text()


def test_titles_dropped_texts_and_examples_are_masked_too(tmp_path):
    raw, phone = personal_corpus(tmp_path / "raw")
    words = (*SETTINGS, "--near-threshold", 0, "--disable-rule", "repetition", "--keep-dropped")
    collect(raw, *words, "--out", tmp_path / "out")
    assert phone[:6] not in everything_read(tmp_path / "out")
    rows = passages(tmp_path / "out")
    assert {row.get("title") for row in rows} == {"肺炎咨询 [phone]", "肺炎专家热线 [phone]", None}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["masked"]["phone"] == sum(row["text"].count("[phone]") + ("title" in row) for row in rows)
    assert {reason: drop["texts"] for reason, drop in report["drops"].items()} == {"out of domain": 2, "too_short": 1}
    collect(raw, *words, "--no-mask", "--out", tmp_path / "unmasked")
    unmasked = everything_read(tmp_path / "unmasked")
    assert phone in unmasked and "[phone]" not in unmasked


def test_sources_are_named_as_rows_name_them_or_said_to_be_unknown(tmp_path, capsys):
    (tmp_path / "raw.jsonl").write_text(json.dumps({"text": OTHER.format(1, 1), "source": "Medical_Books_cn"}))
    words = ["--in-domain", "Medical_Books_cn", "--source-priority", "no_such_source", "--out", tmp_path / "out"]
    assert huatuo_data(["collect", *map(str, [tmp_path / "raw.jsonl", *SETTINGS, *words])]) == 0
    assert len(passages(tmp_path / "out")) == 1
    assert "no document is of no_such_source" in capsys.readouterr().out


def test_files_of_other_kinds_are_named_on_the_console(tmp_path, capsys):
    raw = corpus(tmp_path / "raw", files=1, rows=3)
    for name in ("a.csv", "b.csv", "c.docx"):
        (raw / name).write_text("x")
    assert huatuo_data(["collect", *map(str, [raw, *SETTINGS, "--out", tmp_path / "out"])]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "3 files are not read (.csv 2, .docx 1)" in shown and "quarantine.jsonl" in shown


def test_a_source_of_the_domain_that_loses_much_is_named_and_may_be_trusted(tmp_path, capsys):
    # Rows of equal length: `most` loses one of 5, `some` 3 of 4 (not mostly of the domain), `all` nothing.
    counts = {"most": (4, 1), "some": (1, 3), "all": (3, 0)}
    lines = []
    for source, (medical, others) in counts.items():
        for i in range(medical + others):
            text = (MEDICAL if i < medical else OTHER).format(i, f"{source}{i}")
            lines.append(json.dumps({"text": text.ljust(120, "。"), "source": source}) + "\n")
    (tmp_path / "raw.jsonl").write_text("".join(lines))
    words = [tmp_path / "raw.jsonl", *SETTINGS, "--near-threshold", 0]
    assert huatuo_data(["collect", *map(str, words), "--out", str(tmp_path / "out")]) == 0
    report, shown = json.loads((tmp_path / "out" / "report.json").read_text()), " ".join(capsys.readouterr().out.split())
    assert list(report["losing"]) == ["most"] and report["losing"]["most"] == pytest.approx(0.2, abs=0.02)
    assert "most: 20% of its bytes are out of domain" in shown and "--trusted most" in shown
    assert huatuo_data(["collect", *map(str, words), "--trusted", "most", "--out", str(tmp_path / "trusted")]) == 0
    report = json.loads((tmp_path / "trusted" / "report.json").read_text())
    assert report["losing"] == {} and report["sources"]["most"]["extracted"]["texts"] == 5
    assert "give --trusted" not in capsys.readouterr().out


def test_the_page_shows_many_sources_in_any_script(tmp_path):
    (tmp_path / "raw.jsonl").write_text(
        "".join(json.dumps({"text": MEDICAL.format(i, i), "source": f"来源{i:02}"}) + "\n" for i in range(15))
    )
    collect(tmp_path / "raw.jsonl", *SETTINGS, "--near-threshold", 0, "--out", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert all(f"<td>来源{i:02}</td>" in page for i in range(15)), "the table has all of them"
    assert page.count("<span class=key>") == 10 and "</i>other sources" in page, "the bars have the nine largest, and the rest"


def test_the_page_is_self_contained_and_names_every_source_and_reason(tmp_path):
    raw = corpus(tmp_path / "raw")
    collect(raw, *SETTINGS, "--out", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for word in ("source_0", "source_1", "out of domain", "exact duplicate", "data:image/png;base64,", OTHER.format(2, 74)[:30]):
        assert word in page
    assert "http://" not in page and "https://" not in page and "<script" not in page


def test_unreadable_lines_are_in_quarantine_with_their_place(tmp_path):
    raw = corpus(tmp_path / "raw", files=1)
    with open(raw / "part0.jsonl", "ab") as file:
        file.write(b"{torn\n")
    (raw / "picture.png").write_bytes(b"png")
    collect(raw, *SETTINGS, "--out", tmp_path / "out")
    entries = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [(os.path.basename(entry["file"]), entry["line"]) for entry in entries] == [("part0.jsonl", 32), ("picture.png", None)]


def test_nothing_to_read_is_an_error(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    collect(tmp_path / "empty", *SETTINGS, "--out", tmp_path / "out", code=1)
    assert "no corpus files" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        ((), "say which documents to keep"),
        (("--domain", "cooking"), "no vocabulary of the domain 'cooking'; known: medicine"),
        (("--any-domain", "--domain", "medicine"), "--any-domain keeps everything"),
        ((*SETTINGS, "--window-zh", "500:600"), "passage window is 500 to 600"),
        ((*SETTINGS, "--disable-rule", "adverts"), "no cleaning rule is called adverts; the rules are too_short"),
        ((*SETTINGS, "--near-threshold", "0.3"), "give fewer rows or more bands"),
        ((*SETTINGS, "--engine", "spark"), "the engines are processes, ray"),
        ((*SETTINGS, "--threshold", "fr=1"), "LANGUAGE=SCORE with one of zh, en"),
    ],
)
def test_wrong_usage_is_told_before_any_work(tmp_path, capsys, words, message):
    raw = corpus(tmp_path / "raw", files=1)
    collect(raw, *words, "--out", tmp_path / "out", code=2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "passages").exists()


def test_an_output_folder_within_the_input_is_refused(tmp_path, capsys):
    raw = corpus(tmp_path / "raw", files=1)
    collect(raw, *SETTINGS, "--out", raw / "out", code=2)
    assert "lies in the input folder" in capsys.readouterr().err


def test_a_term_of_one_character_is_left_out_and_said(tmp_path, capsys):
    raw = corpus(tmp_path / "raw", files=1)
    (tmp_path / "terms.txt").write_text("肺\n肺炎\n青霉素\n", encoding="utf-8")
    assert huatuo_data(["collect", str(raw), "--vocabulary", str(tmp_path / "terms.txt"), "--out", str(tmp_path / "out")]) == 0
    assert "1 terms of one character are left out" in capsys.readouterr().out


@pytest.mark.parametrize("room", [3_000, 60_000], ids=["in the first stage", "in the report"])
def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path, capsys, room):
    raw = corpus(tmp_path / "raw", files=2, rows=400)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        collect(raw, *SETTINGS, "--near-threshold", 0, "--out", tmp_path / "out", code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "make room, then give the same command" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.tmp")) and not (tmp_path / "out" / "report.html").exists()
    collect(raw, *SETTINGS, "--near-threshold", 0, "--out", tmp_path / "out")
    collect(raw, *SETTINGS, "--near-threshold", 0, "--out", tmp_path / "fresh")
    assert output(tmp_path / "out") == output(tmp_path / "fresh")
