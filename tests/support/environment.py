"""What the test processes and their children tell jax: fake CPU devices, cheaper compilation, one cache of compiled programs.

Compiling tiny programs is most of what the suite costs. Two things make it cheaper, and neither changes a result:
- LLVM runs at -O1. XLA's own passes, which decide in which order numbers are added, are those of a user's run.
- Every compiled program is kept on disk until the suite ends: another test, the other worker and every child process find it
  there. The key holds the program, XLA's flags and the devices it is for.

`tests/conftest.py` calls both functions before jax is imported.
"""

import os
import tempfile

CHEAPER = "--xla_backend_optimization_level=1"


def use_devices(count: int, environment: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """So many fake CPU devices, in this process if jax is not imported yet, or in a child that gets `environment`."""
    environment.setdefault("JAX_PLATFORMS", "cpu")
    given = environment.get("XLA_FLAGS", "")  # of a flag that is there twice, XLA takes the last
    environment["XLA_FLAGS"] = f"{given} {CHEAPER} --xla_force_host_platform_device_count={count}".lstrip()


def keep_compiled_programs() -> str | None:
    """Makes the cache of this suite; returns its folder, or None where a process above this one has made it."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return None
    folder = tempfile.mkdtemp(prefix="compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    return folder
