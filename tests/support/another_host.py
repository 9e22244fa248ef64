"""A process that jax takes for one of another host: it sees another boot id, as a second machine would have."""

import subprocess
import tempfile
from pathlib import Path

BOOT_ID = "/proc/sys/kernel/random/boot_id"
BIND = f'mount --bind "$0" {BOOT_ID} && exec "$@"'


def on_another_host(command: list[str], number: int) -> list[str]:
    """The command as it runs on host `number`; host 0 is this one."""
    if number == 0:
        return command
    file = Path(tempfile.mkdtemp()) / "boot_id"
    file.write_text(f"00000000-0000-4000-8000-{number:012d}\n")
    return ["unshare", "--mount", "sh", "-c", BIND, str(file), *command]


def can_be_another_host() -> bool:
    """Whether this machine lets a process have a boot id of its own (root, and a kernel with mount namespaces)."""
    return subprocess.run(on_another_host(["true"], 1), capture_output=True).returncode == 0
