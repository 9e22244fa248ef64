"""Several processes, one per host, as one run: how they find each other, agree before they compile, and notice a lost one.

`start` connects the processes. `Peers.agree` compares what each of them is about to do, so that a difference ends all of them
with the name of the host and of the field, instead of wrong weights or a hang. From then on a watchdog exchanges a line a second
with process 0: a host that is killed or stopped ends the others within a minute with exit code 5, and the run directory continues
by the same command. Read next: `trainer.py`, which calls these in this order.

Why not leave this to jax: its coordination service notices a lost process as well, but ends the others by an abort in C++
(exit code 134, a stack of addresses), after its own timeout or, when process 0 is lost, at once.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath

from huatuo_jax.errors import EXIT_PEER_LOST, ConfigError, HuatuoError, StoppedError
from huatuo_jax.io.files import PathLike

BEAT_SECONDS = 1.0
NEW_FILE_SECONDS = 30.0
"""A network file system may show a new file to other hosts so much later."""
JAX_HEARTBEAT_SECONDS = 24 * 3600
"""jax's own watchdog is put off: it would abort in C++ what ours ends in order."""
BEAT, GOODBYE = b".\n", b"goodbye\n"
"""Lines of the watchdog; any other is JSON: ["lost" or "failed", why the receiver must end]."""


@dataclass(frozen=True)
class Cluster:
    """Who takes part: `HOST:PORT` of process 0, the number of processes, which one this is."""

    coordinator: str
    num_processes: int
    process_id: int


def find_cluster(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> Cluster:
    """The cluster that the flags name, or the variables JAX_COORDINATOR_ADDRESS, …, or Slurm, GKE, MPI or TPU metadata.

    Raises:
      ConfigError: nothing says who the processes are, or the numbers are impossible.
    """
    from jax._src import clusters  # the only place where jax tells what it detected; tried with jax 0.10 and 0.11

    variables = {name: os.environ.get(f"JAX_{name}") for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")}
    try:
        coordinator = coordinator or variables["COORDINATOR_ADDRESS"]
        num_processes = int(variables["NUM_PROCESSES"]) if num_processes is None and variables["NUM_PROCESSES"] else num_processes
        process_id = int(variables["PROCESS_ID"]) if process_id is None and variables["PROCESS_ID"] else process_id
        if None in (coordinator, num_processes, process_id):
            coordinator, num_processes, process_id, _ = clusters.ClusterEnv.auto_detect_unset_distributed_params(
                coordinator, num_processes, process_id, None, None, 300
            )
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        raise ConfigError(f"the cluster does not say who its processes are ({error}); {_HOW}") from error
    if coordinator is None or num_processes is None or process_id is None:
        raise ConfigError(f"nothing says who the processes of this run are; {_HOW}")
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process-id is {process_id} of {num_processes} processes; it must be from 0 to {max(num_processes, 1) - 1}"
        )
    if not coordinator.rpartition(":")[0] or not coordinator.rpartition(":")[2].isdecimal():
        raise ConfigError(f"the address of process 0 is {coordinator!r}; it must look like HOST:PORT")
    return Cluster(coordinator, num_processes, process_id)


_HOW = (
    "give --coordinator HOST:PORT, --num-processes N and --process-id I, set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
    "JAX_PROCESS_ID, or start under Slurm, GKE, MPI or on a TPU pod"
)


def start(cluster: Cluster, timeout: int = 300) -> None:
    """Connects this process to the others; call it before anything asks jax for devices.

    Args:
      timeout: seconds to wait for the others.

    Raises:
      HuatuoError: the others did not come in time.
    """
    address = cluster.coordinator
    if cluster.process_id != 0:
        # When the connection to process 0 breaks, jax's client aborts at once, before our watchdog can say which host was lost
        # and end the process in order. Through a relay of our own the connection never breaks.
        address = f"127.0.0.1:{_relay_to(cluster.coordinator, timeout)}"
    jax.config.update("jax_enable_preemption_service", True)  # `StopSignals` needs it
    try:
        jax.distributed.initialize(
            address,
            cluster.num_processes,
            cluster.process_id,
            # Otherwise jax takes one GPU a process under Slurm; we have one process a host, which drives all its devices.
            cluster_detection_method="deactivate",
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=JAX_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=30,
        )
    except (RuntimeError, ValueError) as error:
        raise HuatuoError(
            f"process {cluster.process_id} of {cluster.num_processes} did not meet the others at {cluster.coordinator} within "
            f"{timeout} s ({str(error).splitlines()[0][:200]}); start all of them, and look whether that address can be reached"
        ) from error


def _relay_to(coordinator: str, timeout: float) -> int:
    """Hands on connections from a port of this machine, which it returns, to `coordinator`; a broken one is kept open."""
    host, _, port = coordinator.rpartition(":")
    listener = socket.create_server(("127.0.0.1", 0))

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(1 << 16):
                target.sendall(block)
        # No close and no shutdown: the other side must not learn that this one is gone.

    def serve() -> None:
        while True:
            near, _ = listener.accept()
            far = _connect(host.strip("[]"), int(port), timeout)
            if far is None:
                near.close()
                continue
            for pair in ((near, far), (far, near)):
                threading.Thread(target=copy, args=pair, daemon=True).start()

    threading.Thread(target=serve, name="relay to process 0", daemon=True).start()
    return listener.getsockname()[1]


def _connect(host: str, port: int, timeout: float) -> socket.socket | None:
    """A connection, tried again until `timeout` seconds are over, for process 0 may start later than the others."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        try:
            connection = socket.create_connection((host, port), timeout=5)
            connection.settimeout(None)
            return connection
        except OSError:
            time.sleep(0.2)
    return None


class Peers:
    """The processes of a run: agreement before the work, and the watchdog during it. With one process both do nothing."""

    def __init__(self, coordinator: str | None = None, timeout: float = 60.0) -> None:
        self._host = (coordinator or "127.0.0.1:0").rpartition(":")[0].strip("[]")
        self._timeout = timeout
        self._rounds = 0
        self._names: list[str] = []
        self._watchdog: _Watchdog | None = None

    def agree(self, fields: Mapping[str, Any], seconds: int = 300) -> None:
        """Raises on every process unless all processes give the same fields; see `exchange` for the failure of one of them.

        Args:
          fields: dotted name → JSON value.

        Raises:
          ConfigError: names host, field and both values.
        """
        everyone = self.exchange(dict(fields), seconds)
        lines = []
        for process, theirs in enumerate(everyone[1:], start=1):
            for name in sorted(everyone[0].keys() | theirs.keys()):
                ours, other = everyone[0].get(name), theirs.get(name)
                if ours != other:
                    lines.append(f"  {name}: {_short(ours)} on {self.name_of(0)}, {_short(other)} on {self.name_of(process)}")
        if lines:
            shown = "\n".join(lines[:20]) + (f"\n  and {len(lines) - 20} more" if len(lines) > 20 else "")
            raise ConfigError(f"the hosts of this run disagree; give all of them the same command, files and versions:\n{shown}")

    def exchange(self, value: Any, seconds: int = 300) -> list[Any]:
        """What each process gave, by process, on every process. JSON values.

        Raises:
          HuatuoError: a process did not answer within `seconds`.
        """
        if jax.process_count() == 1:
            return [json.loads(json.dumps(value))]
        from jax._src import distributed  # its key-value store is what Orbax and jax themselves use; there is no public way to it

        client: Any = distributed.global_state.client
        self._rounds += 1
        here = {"host": socket.gethostname(), "value": value}
        client.key_value_set(f"huatuo/{self._rounds}/{jax.process_index()}", json.dumps(here))
        end, answers = time.monotonic() + seconds, []
        for process in range(jax.process_count()):
            left = max(int(1000 * (end - time.monotonic())), 1)
            try:
                answers.append(json.loads(client.blocking_key_value_get(f"huatuo/{self._rounds}/{process}", left)))
            except Exception as error:
                who = self.name_of(process) if self._names else f"process {process}"
                raise HuatuoError(f"{who} did not answer within {seconds} s; is it still running?") from error
        # Process 0 holds the store: were it to end now, because of what it has read, the others would wait for ever.
        if jax.process_index() != 0:
            client.key_value_set(f"huatuo/{self._rounds}/read/{jax.process_index()}", "")
        else:
            with contextlib.suppress(Exception):  # who is gone by now has read it, or is lost
                for process in range(1, jax.process_count()):
                    client.blocking_key_value_get(f"huatuo/{self._rounds}/read/{process}", 30_000)
        self._names = [f"process {process} ({answer['host']})" for process, answer in enumerate(answers)]
        return [answer["value"] for answer in answers]

    def name_of(self, process: int) -> str:
        """`process 3 (host-d)`."""
        return self._names[process] if self._names else f"process {process}"

    def run_together(self, work: Callable[[], Any]) -> Any:
        """Calls `work` on every process; if it fails on one, all of them raise what that one raised, with its name.

        For work before the first step that only one host may be unable to do: a config, a file, a run directory that differs.
        """
        failure: HuatuoError | None = None
        result = None
        try:
            result = work()
        except HuatuoError as error:
            failure = error
        told = self.exchange(None if failure is None else [type(failure).__name__, failure.exit_code, str(failure)])
        if failure is not None:
            raise failure
        for process, entry in enumerate(told):
            if entry is not None:
                raise _FailedElsewhere(f"{self.name_of(process)}: {entry[2]}", entry[1])
        return result

    def check_shared(self, folder: PathLike) -> None:
        """Raises ConfigError on every process unless all see the same run directory: a nonce that process 0 writes there.

        Also waits for network file systems, which may show a new file some seconds later.
        """
        if jax.process_count() == 1:
            return
        place = epath.Path(folder) / ".nonce"
        if jax.process_index() == 0:
            nonce = secrets.token_hex(16)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(nonce)
        nonce = self.exchange(nonce if jax.process_index() == 0 else None)[0]
        end, seen = time.monotonic() + NEW_FILE_SECONDS, False
        while not seen and time.monotonic() < end:
            with contextlib.suppress(OSError):
                seen = place.exists() and place.read_text() == nonce
            if not seen:
                time.sleep(0.5)
        told = self.exchange(seen)
        if jax.process_index() == 0:
            place.unlink(missing_ok=True)
        if blind := [self.name_of(process) for process, ok in enumerate(told) if not ok]:
            raise ConfigError(
                f"{', '.join(blind)} does not see the run directory {folder} of {self.name_of(0)}; it must lie on storage that "
                "all hosts share (NFS, gcsfuse, gs://)"
            )

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Within it a lost host ends this process with exit code 5 within `timeout` seconds, also out of a hung collective."""
        if jax.process_count() == 1:
            yield
            return
        listener = socket.create_server(("", 0)) if jax.process_index() == 0 else None
        told = self.exchange([listener.getsockname()[1], secrets.token_hex(16)] if listener else None)
        port, token = told[0]
        self._watchdog = _Watchdog(listener, (self._host, port), token, self._names, self._timeout)
        try:
            yield
        except BaseException as error:
            if not isinstance(error, StoppedError):
                # When a peer dies, the collective fails here too, a moment before the watchdog knows which host it was; and what
                # fails on all hosts alike shall be reported by each of them.
                self._watchdog.failing = True
                time.sleep(3 * BEAT_SECONDS)
                self._watchdog.tell("failed", f"{self.name_of(jax.process_index())} failed: {error}")
            raise
        finally:
            self._watchdog.close()


class _FailedElsewhere(HuatuoError):
    """What another process raised, with that one's exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class _Watchdog:
    """A star of connections around process 0, one byte a second in both directions.

    Process 0 notices who falls silent and tells the others; they notice process 0. A connection that closes without a goodbye
    belongs to a process that was killed; one that only falls silent, to one that is stopped or unreachable.
    """

    def __init__(
        self, listener: socket.socket | None, leader: tuple[str, int], token: str, names: list[str], timeout: float
    ) -> None:
        self._names, self._timeout, self._token = names, timeout, token
        self._lock = threading.Lock()
        self._connections: dict[int, socket.socket] = {}
        self._heard: dict[int, float] = {}
        self._gone: set[int] = set()
        self._closing = threading.Event()
        self.failing = False
        self._all_gone = threading.Event()
        if listener is not None:
            others = range(1, len(names))
            self._heard = {process: time.monotonic() for process in others}
            self._start(self._accept, listener)
        else:
            self._heard = {0: time.monotonic()}
            self._start(self._join, leader)
        self._start(self._beat)

    def _start(self, function: Callable[..., None], *args: Any) -> None:
        threading.Thread(target=function, args=args, name=f"watchdog {function.__name__}", daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while not self._closing.is_set():
            connection, _ = listener.accept()
            self._start(self._welcome, connection)

    def _welcome(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        try:
            token, process = connection.makefile("rb").readline(200).decode().split()
        except (OSError, ValueError):
            connection.close()
            return
        if not secrets.compare_digest(token, self._token):
            connection.close()
            return
        connection.settimeout(None)
        self._listen(int(process), connection)

    def _join(self, leader: tuple[str, int]) -> None:
        connection = _connect(*leader, self._timeout)
        if connection is None:
            return  # `_beat` finds process 0 silent
        connection.sendall(f"{self._token} {jax.process_index()}\n".encode())
        self._listen(0, connection)

    def _listen(self, process: int, connection: socket.socket) -> None:
        """Reads the lines of one peer until its connection ends."""
        with self._lock:
            self._connections[process] = connection
        with contextlib.suppress(OSError):
            for line in connection.makefile("rb"):
                self._heard[process] = time.monotonic()
                if line == GOODBYE:
                    self._gone.add(process)
                    if self._gone >= self._heard.keys():
                        self._all_gone.set()
                elif line != BEAT:
                    kind, message = json.loads(line)
                    if jax.process_index() == 0:
                        self.tell(kind, message)  # the others hear of each other through process 0 alone
                    if kind == "lost" or not self.failing:
                        self._end(message)
        if process not in self._gone:
            self._lost(process, "its connection broke: it was killed, or its host went down")

    def _beat(self) -> None:
        while not self._closing.wait(BEAT_SECONDS):
            self._send(BEAT)
            for process, heard in list(self._heard.items()):
                silent = time.monotonic() - heard
                if process not in self._gone and silent > self._timeout:
                    self._lost(process, f"nothing was heard of it for {silent:.0f} s: it is stopped, or cannot be reached")

    def _send(self, content: bytes) -> None:
        with self._lock:
            for connection in self._connections.values():
                with contextlib.suppress(OSError):
                    connection.sendall(content)

    def tell(self, kind: str, message: str) -> None:
        """Ends the other processes with this message; those that are failing themselves only when `kind` is "lost"."""
        self._send(json.dumps([kind, message]).encode() + b"\n")

    def _lost(self, process: int, why: str) -> None:
        message = f"{self._names[process]} is lost ({why})"
        if jax.process_index() == 0:
            self.tell("lost", message)
        self._end(message)

    def _end(self, message: str) -> None:
        if self._closing.is_set():
            return
        text = f"\nerror: {message}; the run directory is whole, and the same command continues from its newest checkpoint\n"
        os.write(2, text.encode())
        sys.stdout.flush()
        # Not sys.exit: the main thread may hang in a collective that never ends.
        os._exit(EXIT_PEER_LOST)

    def close(self) -> None:
        """Says goodbye, so that nobody takes the end of this process for a loss; process 0 waits a little for the others."""
        self._send(GOODBYE)
        if jax.process_index() == 0:
            self._all_gone.wait(min(self._timeout, 30))
        self._closing.set()


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "…"
