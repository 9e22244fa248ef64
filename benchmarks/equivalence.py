"""Whether two commits compute the same, bit for bit, on this machine: the proof of a refactoring.

    python -m benchmarks.equivalence OLD_COMMIT NEW_COMMIT [--work DIR] [--passes N]

Both run the whole quickstart, a short training on two devices, and collect, one after the other, each from a checkout of its own
and with this interpreter. Then all logged losses, the plan, every token record, every exported weight and file, the passages
and the pairs are compared. Prints a table and ends with 1 on any difference. `--passes 3` shortens the quickstart's
training to some twenty steps and compares the same things: about two minutes a commit on two busy cores. Next to read:
`output_hashes.py` (how things are compared), `equivalence_probe.py` (how a commit's token records are read).

What must hold: neither commit's code runs in this process or reads the other's files. Floating-point losses are equal only if XLA
compiles the same program for the same CPU, so nothing is compared across machines.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.output_hashes import array_hash, export_hashes, file_hash

REPOSITORY = Path(__file__).parents[1]
PROBE = Path(__file__).with_name("equivalence_probe.py")
SHORT_PASSES = 3
"""Passes over the data of the two-device run: some twenty steps."""

Outputs = dict[str, dict[str, str]]
"""Kind of thing → name → value or hash."""

# ---- What depends on the commit: spellings of commands, config fields, places of files. Extend it where a commit renames. ----

SCRIPT = "examples/quickstart/run.sh"
"""The commit's own commands. They write below `runs/quickstart`."""
TRAIN_LINE = re.compile(r"^step huatuo train .*$", re.MULTILINE)
"""The line of the script that trains; the fields below are put behind it."""
TWO_DEVICE_FIELDS = "--mesh.fsdp 2 --logging.every 1"
PASSES = (
    "configs/quickstart.py",
    re.compile(r"^DOMAIN_PASSES, SFT_PASSES = .*$", re.MULTILINE),
    "DOMAIN_PASSES, SFT_PASSES = {0}, {0}",
)
"""Where a config says how often the data is seen: file, line, and the line that replaces it."""
COLLECT = (["huatuo-data", "collect"], ["huatuo", "collect"], ["huatuo", "data", "collect"])
"""Spellings of collect, tried in turn."""
COLLECT_ARGUMENTS = ["examples/quickstart/corpus", "--domain", "medicine", "--out"]
TOKENS, PLAN, PAIRS, EXPORT, METRICS = "data/tokens", "data/plan", "data/pairs.jsonl", "hf", "metrics.jsonl"
"""Places in the run directory."""
ANSWERS = ("answers.json", "recall.json")
"""What the trained model answered, as the script's `ask` wrote it."""

# ------------------------------------------------------------------------------------------------------------------------------


class Checkout:
    """A commit in a folder of its own, with console scripts that run its code whatever is installed.

    Attributes:
      tree: the checkout. out: what was made there, moved out of the tree.
    """

    def __init__(self, commit: str, folder: Path) -> None:
        self.commit, self.tree, self.out, self._scripts = commit, folder / "tree", folder / "out", folder / "bin"
        for made in (self.out, self._scripts):
            made.mkdir(parents=True)
        # A worktree, so that the commit's scripts run in a tree of their own and the user's checkout is not touched.
        _git("worktree", "add", "--detach", str(self.tree), commit)
        self._write_scripts()

    def remove(self) -> None:
        """Takes the worktree away again."""
        _git("worktree", "remove", "--force", str(self.tree))

    def run(self, command: list[str], check: bool = True, xla_flags: str = "") -> bool:
        """Runs a command in the tree; what it prints goes to `out/log.txt`. Returns whether it succeeded."""
        # The CPU for both: a GPU's sums may differ from run to run.
        variables = os.environ | {
            "PATH": os.pathsep.join([str(self._scripts), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(self.tree),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": xla_flags,
        }
        # Appended: one log tells the whole of a commit, and an error names its last lines.
        with (self.out / "log.txt").open("a", encoding="utf-8") as log:
            done = subprocess.run(command, cwd=self.tree, env=variables, stdout=log, stderr=subprocess.STDOUT)
        if check and done.returncode:
            log_tail = "\n".join((self.out / "log.txt").read_text(encoding="utf-8").splitlines()[-15:])
            raise RuntimeError(f"{self.commit}: {' '.join(command)} failed ({done.returncode}):\n{log_tail}")
        return done.returncode == 0

    def quickstart(self, name: str, passes: int | None, two_devices: bool) -> Path:
        """Runs the commit's script in the tree as it was checked out; returns the run directory, moved to `out/NAME`.

        Args:
          passes: over the data, instead of the config's.
          two_devices: train on two, and end the script there.
        """
        _git("-C", str(self.tree), "checkout", "--force", "--quiet", ".")
        if passes is not None:
            file, line, replacement = PASSES
            self._edit(file, line, replacement.format(passes))
        # The script ends after training: what follows it is compared after the run on one device.
        if two_devices:
            script = (self.tree / SCRIPT).read_text(encoding="utf-8")
            train = self._match(TRAIN_LINE, script, SCRIPT)
            (self.tree / SCRIPT).write_text(f"{script[: train.end()]} {TWO_DEVICE_FIELDS}\n", encoding="utf-8")
        self.run([str(self.tree / SCRIPT)], xla_flags="--xla_force_host_platform_device_count=2" if two_devices else "")
        return Path(shutil.move(self.tree / "runs" / "quickstart", self.out / name))

    def collect(self) -> Path:
        """Runs collect on the quickstart's corpus; returns its folder."""
        spelling = next((words for words in COLLECT if self.run([*words, "--help"], check=False)), None)
        if spelling is None:
            raise RuntimeError(f"{self.commit} knows none of {COLLECT}; add its spelling")
        self.run([*spelling, *COLLECT_ARGUMENTS, str(self.out / "collected")])
        return self.out / "collected"

    def records(self, tokens: Path) -> dict[str, str]:
        """Hashes of every token record, by source and split."""
        self.run([sys.executable, str(PROBE), str(tokens), str(self.out / "records.npz")])
        with np.load(self.out / "records.npz") as arrays:
            return {name: array_hash(arrays[name]) for name in arrays.files}

    def _edit(self, file: str, line: re.Pattern[str], replacement: str) -> None:
        path = self.tree / file
        text = path.read_text(encoding="utf-8")
        match = self._match(line, text, file)
        path.write_text(text[: match.start()] + replacement + text[match.end() :], encoding="utf-8")

    def _match(self, line: re.Pattern[str], text: str, file: str) -> re.Match[str]:
        match = line.search(text)
        if match is None:
            raise RuntimeError(f"{self.commit}: {file} has no line {line.pattern}; see the part that depends on the commit")
        return match

    def _write_scripts(self) -> None:
        """Console scripts as this commit declares them: those installed belong to one commit alone."""
        paths = [self.tree / name for name in ("setup.py", "pyproject.toml")]
        declared = "".join(path.read_text(encoding="utf-8") for path in paths if path.is_file())
        for name, module, function in re.findall(r"(huatuo[\w-]*)\s*=\s*\"?([\w.]+):(\w+)\"", declared):
            script = self._scripts / name
            script.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
            script.chmod(0o755)


def outputs(checkout: Checkout, passes: int | None) -> Outputs:
    """Everything that is compared, of one commit."""
    results: Outputs = {}
    run = checkout.quickstart("quickstart", passes, two_devices=False)
    results["losses"] = _losses(run)
    results["plan"] = {name: array_hash(np.load(run / PLAN / f"{name}.npy")) for name in ("row_starts", "row_docs")}
    results["token records"] = checkout.records(run / TOKENS)
    exported = export_hashes(run / EXPORT)
    files = {name: value for name, value in exported.items() if (run / EXPORT / name).is_file()}
    results["exported weights"] = {name: value for name, value in exported.items() if name not in files}
    results["exported files"] = files
    results["answers"] = {name: file_hash(run / name) for name in ANSWERS}
    results["losses on two devices"] = _losses(checkout.quickstart("two_devices", SHORT_PASSES, two_devices=True))
    passages = checkout.collect() / "passages"
    results["collected passages"] = {path.name: file_hash(path) for path in sorted(passages.iterdir())}
    results["unified pairs"] = {"pairs.jsonl": file_hash(run / PAIRS)}
    return results


def _losses(run: Path) -> dict[str, str]:
    """Every number of metrics.jsonl whose name holds "loss" (means over the logging interval), by step, printed exactly."""
    losses: dict[str, str] = {}
    for line in (run / METRICS).read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        losses |= {f"step {entry['step']} {name}": repr(value) for name, value in entry.items() if "loss" in name}
    return losses


def compare(old: Outputs, new: Outputs, console: Console) -> bool:
    """Prints one row per kind, and every item that differs; returns whether all are equal and none is empty."""
    table = Table("what", "old", "new", "equal", title="bit for bit")
    differences, same = [], True
    for kind in old:
        before, after = old[kind], new[kind]
        different = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        equal = not different and bool(before)  # two empty things are equal and prove nothing
        table.add_row(kind, _shown(before), _shown(after), "yes" if equal else f"NO: {len(different)}")
        differences += [(f"{kind}: {name}", before.get(name, "absent"), after.get(name, "absent")) for name in different]
        same = same and equal
    console.print(table)
    for name, before_value, after_value in differences:
        console.print(f"{name}: {before_value[:20]} → {after_value[:20]}", markup=False, highlight=False, soft_wrap=True)
    return same


def _shown(items: dict[str, str]) -> str:
    joint = array_hash(np.frombuffer(json.dumps(items).encode(), np.uint8))
    return f"{len(items)} · {joint[:10]}"


def _git(*words: str) -> None:
    done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"git {' '.join(words)}: {done.stderr.strip()}")


def main() -> int:
    """Runs both commits and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", metavar="OLD_COMMIT")
    parser.add_argument("new", metavar="NEW_COMMIT")
    parser.add_argument("--work", type=Path, metavar="DIR", help="new folder to work in, kept; default: a temporary one")
    parser.add_argument("--passes", type=int, metavar="N", help="passes over the data in the quickstart's training")
    args = parser.parse_args()
    console = Console()
    if args.work and args.work.exists():
        parser.error(f"{args.work} is there; give a new folder")
    work = args.work.resolve() if args.work else Path(tempfile.mkdtemp(prefix="equivalence-"))
    results: list[Outputs] = []
    try:
        for name, commit in (("old", args.old), ("new", args.new)):
            console.print(f"{name}: {commit}, log in {work / name / 'out' / 'log.txt'}", highlight=False)
            checkout = Checkout(commit, work / name)
            try:
                results.append(outputs(checkout, args.passes))
            finally:
                checkout.remove()
    except RuntimeError as error:
        console.print(str(error), markup=False, highlight=False)
        return 1
    same = compare(results[0], results[1], console)
    # Kept after an error, which returned above: the logs say what failed.
    if not args.work:
        shutil.rmtree(work)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
