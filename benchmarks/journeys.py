"""Which source files a reader must follow: the files of ours of which at least one function runs on each of three journeys.

    python -m benchmarks.journeys [--json FILE]     trace the journeys (about a minute on two cores)
    python -m benchmarks.journeys --size            code lines of the packages

record → gradient: import, build, plan and two training steps on the quickstart's data
checkpoint → HF folder: to-hf of the run just trained
raw document → pair: collect of the quickstart's corpus, then unify --template of its passages

Module-level code and class bodies do not count as functions, nor do comprehensions (a function that holds one counts itself).
Files of which nothing but class bodies or comprehensions run are counted apart. Each command is a process of its own with a
profile hook in all Python threads and in forked workers. What must hold: a file is counted by what runs, not by what is imported.
Next to read: docs/architecture.md, which tells the same journeys.
"""

import argparse
import ast
import io
import json
import os
import subprocess
import sys
import tempfile
import tokenize
from pathlib import Path

Step = dict[str, list[str]]
"""Kind ("function", or "body" where only class bodies and comprehensions ran) → files."""

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("huatuo_jax", "data_tools")
TRACED = (*PACKAGES, "configs")
EXAMPLES = REPOSITORY / "examples" / "quickstart"
SHORT = 60
"""Lines below which a file is counted as short."""

# What depends on the names of commands and of the config's fields, kept together for the commit that renames some.
HUATUO = "import sys; from huatuo_jax.cli import main; sys.exit(main())"
HUATUO_DATA = "import sys; from data_tools.cli import main; sys.exit(main())"
CONFIG = """
import dataclasses
from configs import quickstart

def config():
    whole = quickstart.config()
    mixture = {{name: dataclasses.replace(mix, epochs=0.4) for name, mix in whole.data.mixture.items()}}
    data = dataclasses.replace(whole.data, mixture=mixture, tokens={tokens!r}, plan={plan!r})
    return dataclasses.replace(whole, data=data)
"""
"""The quickstart on so few records that its batches of four rows make two steps or three."""

HOOK = """
import os, sys, threading

CO_OPTIMIZED = 1  # set on functions, not on modules and class bodies
PARTS = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")
roots = tuple(os.environ["JOURNEY_ROOTS"].split(os.pathsep))
done, bodies = set(), set()

def hook(frame, event, _):
    code = frame.f_code
    name = code.co_filename
    # A file's first function settles it: after that a call costs one look into a set, or tracing would take hours.
    if event != "call" or name in done:
        return
    if not name.startswith(roots):
        done.add(name)
    elif code.co_flags & CO_OPTIMIZED and code.co_name not in PARTS:
        done.add(name)
        write("function", name)
    elif code.co_name != "<module>" and name not in bodies:
        bodies.add(name)
        write("body", name)

def write(kind, name):
    # At once and by descriptor: a worker may end without any clean-up.
    file = os.open(os.environ["JOURNEY_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{kind} {name}\\n".encode())
    os.close(file)

# In this thread, in those that Python starts, and in forks, which copy both.
threading.setprofile(hook)
sys.setprofile(hook)
"""
"""The `sitecustomize` module of the traced processes."""


def main() -> None:
    """Prints the journeys, or the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write journey → step → kind → files")
    parser.add_argument("--size", action="store_true", help="print code lines instead")
    args = parser.parse_args()
    if args.size:
        print_sizes()
        return
    with tempfile.TemporaryDirectory() as folder:
        journeys = trace(Path(folder))
    for journey, steps in journeys.items():
        files = sorted({name for step in steps.values() for name in step["function"]})
        others = {name for step in steps.values() for name in step["body"]} - set(files)
        counts = ", ".join(f"{name} {len(step['function'])}" for name, step in steps.items())
        print(f"\n{journey}: {len(files)} files ({counts}); {len(files) + len(others)} with those of class bodies alone")
        for name in files:
            lines = len((REPOSITORY / name).read_text(encoding="utf-8").splitlines())
            print(f"  {lines:5}  {name}")
    if args.json:
        args.json.write_text(json.dumps(journeys, indent=1) + "\n", encoding="utf-8")


def trace(folder: Path) -> dict[str, dict[str, Step]]:
    """Runs every command in `folder`; journey → command → files, as paths from the repository's root."""
    data, run, tokenizer = folder / "data", folder / "run", folder / "tokenizer.model"
    tokens, plan, pairs, sft = data / "tokens", data / "plan", folder / "pairs.jsonl", EXAMPLES / "sft.jsonl"
    # Not in a folder called "configs", which would hide the repository's from the config's import.
    config = folder / "short.py"
    config.write_text(CONFIG.format(tokens=str(tokens), plan=str(plan)), encoding="utf-8")
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
    corpus = sorted((EXAMPLES / "corpus").glob("*.jsonl"))

    # With few epochs and one held-out record a source, so that training takes seconds.
    def step(program: str, *words: object) -> Step:
        return _traced(program, [str(word) for word in words], folder)

    # What the first journey starts from is not part of it.
    step(HUATUO_DATA, "unify", "--template", *corpus, "--out", pairs)
    step(HUATUO_DATA, "tokenizer", "train", pairs, sft, "--vocab-size", 4000, "--out", tokenizer)
    gradient = {
        "import": step(HUATUO_DATA, "import", pairs, sft, "--out", data / "unified"),
        "build": step(HUATUO_DATA, "build", data / "unified", "--tokenizer", tokenizer, "--out", tokens, "--holdout", 1),
        "plan": step(HUATUO_DATA, "plan", tokens, "--config", config, "--out", plan),
        "train": step(HUATUO, "train", config, "--run", run),
    }
    hf_folder = {"to-hf": step(HUATUO, "convert", "to-hf", run, run / "hf")}
    collected = step(HUATUO_DATA, "collect", EXAMPLES / "corpus", "--domain", "medicine", "--out", folder / "collected")
    passages = sorted((folder / "collected" / "passages").glob("*.jsonl.zst"))
    pair = {"collect": collected, "unify": step(HUATUO_DATA, "unify", "--template", *passages, "--out", folder / "again.jsonl")}
    return {"record → gradient": gradient, "checkpoint → HF folder": hf_folder, "raw document → pair": pair}


def _traced(program: str, words: list[str], folder: Path) -> Step:
    """Runs one command under the hook."""
    ran_file = folder / "ran.txt"
    ran_file.unlink(missing_ok=True)
    roots = os.pathsep.join(str(REPOSITORY / package) + os.sep for package in TRACED)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JOURNEY_FILE": str(ran_file),
        "JOURNEY_ROOTS": roots,
        "PYTHONPATH": f"{folder / 'hook'}{os.pathsep}{REPOSITORY}",
    }
    # The hook comes in as `sitecustomize`, which Python imports by itself in every process, before any module of ours.
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    ran: dict[str, set[str]] = {"function": set(), "body": set()}
    for line in ran_file.read_text(encoding="utf-8").splitlines():
        kind, _, name = line.partition(" ")
        ran[kind].add(str(Path(name).relative_to(REPOSITORY)))
    return {"function": sorted(ran["function"]), "body": sorted(ran["body"] - ran["function"])}


def print_sizes() -> None:
    """Code lines, files, short files, the longest file and the share of comments, per package and in all."""
    totals = [0, 0, 0, 0]
    longest = (0, "")
    print(f"{'':12}{'code lines':>11}{'files':>7}{f'< {SHORT} lines':>12}{'comments':>10}")
    for package in PACKAGES:
        code = comments = short = 0
        paths = sorted((REPOSITORY / package).rglob("*.py"))
        # Tokens and the syntax tree and not a pattern of lines: a "#" may stand within a string, a docstring over many lines.
        for path in paths:
            text = path.read_text(encoding="utf-8")
            code_lines, comment_lines = count_lines(text)
            code, comments = code + code_lines, comments + comment_lines
            lines = len(text.splitlines())
            short += lines < SHORT
            longest = max(longest, (lines, str(path.relative_to(REPOSITORY))))
        _print_size(package, code, len(paths), short, comments)
        totals = [total + part for total, part in zip(totals, (code, len(paths), short, comments), strict=True)]
    _print_size("both", *totals)
    print(f"longest file: {longest[1]}, {longest[0]} lines")
    print("comments: the share of lines with a comment or docstring and no code among all that are not blank")


def _print_size(name: str, code: int, files: int, short: int, comments: int) -> None:
    print(f"{name:12}{code:11,}{files:7}{short:12}{comments / (code + comments):10.1%}")


def count_lines(text: str) -> tuple[int, int]:
    """(lines with code, lines with a comment or docstring alone); a string that is a statement by itself is a docstring."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    layout = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}
    code: set[int] = set()
    comments: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        lines = range(token.start[0], token.end[0] + 1)
        if token.type == tokenize.COMMENT:
            comments.update(lines)
        elif token.type not in layout and token.start[0] not in docstrings:
            code.update(lines)
    # A line with code and a comment counts as code; so does a string that belongs to an expression.
    filled = {number for number, line in enumerate(text.splitlines(), 1) if line.strip()}
    return len(code & filled), len(((docstrings & filled) | comments) - code)


if __name__ == "__main__":
    main()
