"""Web pages and PDF files become documents; what has no text is named with the reason."""

import gzip

import pytest

from data_tools.cli import main
from data_tools.collect import documents
from data_tools.collect.reading import Document, Unreadable, list_shards, read_documents
from data_tools.collect.settings import ReadingConfig
from huatuo_jax.errors import ConfigError

SENTENCES = [f"Fever number {i} is a common sign of an infection, and rest is good for it." for i in range(6)]
CHINESE = "发热是感染常见的症状，多数人休息几天就会好转，不必担心。如果持续三天以上，请到医院就诊，由医生检查原因。" * 3


def page(paragraphs: list[str], charset: str = "utf-8") -> str:
    body = "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    menu = "<nav><ul><li><a href='/'>Home</a></li><li><a href='/x'>Contact</a></li></ul></nav>"
    head = f"<head><meta charset='{charset}'><title>Fever</title></head>"
    return f"<!DOCTYPE html><html>{head}<body>{menu}<article><h1>Fever</h1>{body}</article><footer>Cookies</footer></body></html>"


def pdf(*lines: str) -> bytes:
    """A PDF file of one page, without compression."""
    text = " ".join(f"({line}) Tj T*" for line in lines)
    stream = f"BT /F1 12 Tf 14 TL 72 720 Td {text} ET"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    trailer = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    return (out + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}" + trailer).encode()


def read(folder) -> tuple[list[Document], list[Unreadable]]:
    files = [file for shard in list_shards([folder]).shards for file in shard.files]
    found = [one for file in files for one in read_documents(file, ReadingConfig())]
    return [one for one in found if isinstance(one, Document)], [one for one in found if isinstance(one, Unreadable)]


@pytest.mark.parametrize("name", ["a.html", "a.htm", "a.html.gz"])
def test_a_web_page_is_one_document_without_its_menus(tmp_path, name):
    pytest.importorskip("trafilatura")
    (tmp_path / "pages").mkdir()
    content = page(SENTENCES).encode()
    (tmp_path / "pages" / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (document,), unreadable = read(tmp_path)
    assert document.source == "pages" and document.title == "Fever" and not unreadable
    assert all(sentence in document.text for sentence in SENTENCES)
    assert "Contact" not in document.text and "Cookies" not in document.text


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_a_web_page_in_chinese(tmp_path, encoding):
    pytest.importorskip("trafilatura")
    (tmp_path / "a.html").write_bytes(page([CHINESE, CHINESE[:80]], encoding).encode(encoding))
    (document,), unreadable = read(tmp_path)
    assert CHINESE in document.text and not unreadable


@pytest.mark.parametrize("name", ["a.pdf", "a.pdf.gz"])
def test_a_pdf_file_is_one_document(tmp_path, name):
    pytest.importorskip("pypdf")
    content = pdf(*SENTENCES)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (document,), unreadable = read(tmp_path)
    assert document.text.split() == " ".join(SENTENCES).split() and not unreadable


def test_files_without_text_are_named_with_the_reason(tmp_path):
    pytest.importorskip("trafilatura")
    pytest.importorskip("pypdf")
    (tmp_path / "empty.html").write_text("<html><body></body></html>")
    (tmp_path / "nothing.html").write_bytes(b"")
    (tmp_path / "scan.pdf").write_bytes(pdf())
    (tmp_path / "torn.pdf").write_bytes(pdf(*SENTENCES)[:200])
    (tmp_path / "wrong.pdf").write_bytes(b"\x00\xff" * 500)
    documents, unreadable = read(tmp_path)
    reasons = {one.file.rsplit("/", 1)[1]: one.reason for one in unreadable}
    assert not documents and set(reasons) == {"empty.html", "nothing.html", "scan.pdf", "torn.pdf", "wrong.pdf"}
    assert "no text was found in the HTML" in reasons["empty.html"] and "OCR" in reasons["scan.pdf"]
    assert "not a readable PDF" in reasons["wrong.pdf"]


def test_a_missing_package_is_named_before_anything_is_read(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.pdf").write_bytes(pdf("x"))
    monkeypatch.setattr(documents, "PACKAGES", {".pdf": "no_such_package"})
    with pytest.raises(ConfigError, match=r"b.pdf: reading .pdf needs no_such_package; pip install 'huatuo-jax\[documents\]'"):
        list_shards([tmp_path])


def test_files_of_other_kinds_are_named_before_the_run(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.jsonl").write_text("".join(f'{{"text": "{CHINESE}{i}"}}\n' for i in range(3)))
    for name in ("a.csv", "b.csv", "c.docx"):
        (tmp_path / "raw" / name).write_text("x")
    assert main(["collect", str(tmp_path / "raw"), "--any-domain", "--out", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 files are not read (.csv 2, .docx 1)" in said and "a.csv; questions and answers in a table" in said
    assert said.index("are not read") < said.index("passages in")
