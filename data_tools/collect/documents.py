"""Web pages and PDF files as plain text: what `reading.py` asks for files whose text has to be found first.

Each file is one document. What must hold: no content of a file raises anything but a `DataError` with the reason, so that a bad
file costs itself and not the run. The packages are those of the extra `documents`.
"""

import importlib.util
import io

from huatuo_jax.errors import ConfigError, DataError

PACKAGES = {".html": "trafilatura", ".htm": "trafilatura", ".pdf": "pypdf", ".parquet": "pyarrow"}
"""What reading a format needs beyond the core packages."""


def check_package(suffix: str, path: str) -> None:
    """Raises ConfigError, which says how to install it, if the package that reads `path` is missing."""
    package = PACKAGES.get(suffix)
    if package and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{path}: reading {suffix} needs {package}; pip install 'huatuo-jax[documents]', or leave such files out"
        )


def html_text(content: bytes) -> tuple[str, str]:
    """Title and text of a web page, without menus and advertisements.

    Raises:
      DataError: there is no text in it.
    """
    import trafilatura

    try:
        page = trafilatura.bare_extraction(content, include_comments=False, with_metadata=True)
    except Exception as error:  # a parser of the wild web may fail in any way
        raise DataError(f"not readable as HTML ({error!r})") from error
    text = "" if page is None else str(getattr(page, "text", "") or "")
    if not text.strip():
        raise DataError("no text was found in the HTML (a page of links, or one that scripts fill)")
    return str(getattr(page, "title", "") or ""), text


def pdf_text(content: bytes) -> str:
    """The text of a PDF file, its pages in order.

    Raises:
      DataError: the file is encrypted or damaged, or has no text.
    """
    import pypdf

    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DataError("the PDF is encrypted; save it without a password")
        text = "\n".join(page.extract_text() for page in reader.pages)
    except DataError:
        raise
    except Exception as error:  # damaged files make pypdf fail in many ways
        raise DataError(f"not a readable PDF file ({error!r})") from error
    if not text.strip():
        raise DataError("no text in the PDF; if it is a scan, run a text recognition (OCR) first")
    return text
