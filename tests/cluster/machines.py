"""Several Ray nodes on one machine, each in a network namespace of its own where root allows it.

A node in a namespace can be cut off: its packets are lost, as where a machine loses its power. Elsewhere all nodes are
on loopback, as those of `ray.cluster_utils.Cluster`, and can only be killed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from forked_workers import forking

RAY = "import sys; sys.executable = sys.argv.pop(1); from ray.scripts.scripts import main; main()"
_SWITCH = "sw"
_TRIES = 5

# A node that is gone is known to be after three seconds instead of fifteen, one that was cut off after twelve.
QUICK = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_server_request_timeout_seconds": "30",
    # A busy machine is slow to start a node's agents, which its raylet waits for.
    "RAY_agent_register_timeout_ms": "180000",
    "RAY_num_prestart_python_workers": "0",
    "RAY_enable_metrics_collection": "0",
}


# As `ray drain-node` does it, which wants the node's id.
DRAIN = """
import time
from ray._raylet import GcsClient
head = GcsClient(address="{address}")
(node,) = [id.hex() for id, node in head.get_all_node_info().items() if node.node_name == "{name}" and node.state == 0]
preempted = 2
accepted, why = head.drain_node(node, preempted, "spot", (time.time_ns() // 1_000_000) + 5000)
assert accepted, why
"""


@functools.cache
def namespaces_allowed() -> bool:
    """Whether this process may make network namespaces."""
    probe = f"zar-probe-{os.getpid()}"
    if os.geteuid() or shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode == 0
    if made:
        _ip("netns", "del", probe)
    return made


def free_port() -> int:
    """A port of this machine that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@dataclass
class Node:
    """A machine with a raylet.

    Attributes:
        name: What it is called.
        address: Its IP address.
        namespace: Its network namespace, if it has one.
        log: What it prints.
        process: Its `ray start --block`.
        gone: Whether it was killed or cut off.
    """

    name: str
    address: str
    namespace: str | None
    log: Path
    process: subprocess.Popen[bytes] = field(init=False, repr=False)
    gone: bool = False

    def joined(self) -> bool:
        """Waits until it has joined; False, and it is gone, where it does not, as on a machine with much else to do."""
        limit = time.monotonic() + 300
        while "Ray runtime started" not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > limit:
                self.kill()
                return False
            time.sleep(0.1)
        return True

    def kill(self) -> None:
        """Ends all its processes at once, as a machine that is taken away does."""
        self.gone = True
        inside = _ip("netns", "pids", self.namespace).split() if self.namespace else []
        for pid in {self.process.pid, *processes_below(self.process.pid), *map(int, inside)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=30)

    def cut(self) -> None:
        """Cuts it from the network, without a word to anyone."""
        assert self.namespace is not None
        self.gone = True
        _ip("-n", self.namespace, "link", "set", "eth0", "down")


class Machines:
    """A head without CPUs and nodes beside it, as a context manager; all that it started is gone at its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kind = "network namespaces" if namespaces_allowed() else "loopback"
        self.nodes: list[Node] = []
        self._tag = f"zr{os.getpid()}"
        self.port = 6379 if namespaces_allowed() else free_port()
        # A socket's path may have 107 characters.
        self.temp = Path("/tmp") / self._tag
        self.environment = {
            **os.environ,
            **QUICK,
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "HOME": str(folder),
        }
        self.environment.pop("RAY_ADDRESS", None)
        self._python = sys.executable
        self._ends = contextlib.ExitStack()

    def __enter__(self) -> Machines:
        if namespaces_allowed():
            _ip("netns", "add", f"{self._tag}{_SWITCH}")
            _ip("-n", f"{self._tag}{_SWITCH}", "link", "add", "br0", "type", "bridge")
            _ip("-n", f"{self._tag}{_SWITCH}", "link", "set", "br0", "up")
        try:
            if namespaces_allowed():
                # Their workers are forked, which takes a third of a node's CPU off; without namespaces a node could
                # not tell which forks are its own to kill.
                self.temp.mkdir()
                with self._ends.enter_context(forking(self.temp))():
                    self._python = sys.executable
            self.head = self.start("head", cpus=0)
            assert self.head.joined(), self.head.log.read_text()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill()
        self._ends.close()
        if namespaces_allowed():
            for namespace in [node.namespace for node in self.nodes] + [f"{self._tag}{_SWITCH}"]:
                subprocess.run(["ip", "netns", "del", str(namespace)], capture_output=True, check=False)
        shutil.rmtree(self.temp, ignore_errors=True)

    @property
    def address(self) -> str:
        """Of the head's GCS."""
        return f"{self.head.address}:{self.port}"

    def start(self, name: str, cpus: int = 2) -> Node:
        """Starts a node, the first one as the head, and returns while it joins."""
        number = len(self.nodes) + 1
        namespace, address = None, "127.0.0.1"
        if namespaces_allowed():
            namespace, address = f"{self._tag}n{number}", f"10.213.0.{number}"
            self._plug(namespace, f"p{number}", address)
        as_head = [
            "--head",
            f"--port={self.port}",
            f"--ray-client-server-port={free_port()}",
            "--include-dashboard=false",
        ]
        command = [
            *(*self.inside(namespace), sys.executable, "-c", RAY, self._python),
            *("start", "--block", f"--node-name={name}", f"--node-ip-address={address}"),
            *(as_head if name == "head" else [f"--address={self.address}"]),
            *(f"--num-cpus={cpus}", "--object-store-memory=120000000", f"--temp-dir={self.temp / str(number)}"),
            *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0", "--disable-usage-stats"),
        ]
        log = self.folder / f"{name}.log"
        node = Node(name, address, namespace, log)
        with log.open("wb") as output:
            node.process = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.nodes.append(node)
        return node

    def _plug(self, namespace: str, port: str, address: str) -> None:
        _ip("netns", "add", namespace)
        switch = f"{self._tag}{_SWITCH}"
        _ip("link", "add", "eth0", "netns", namespace, "type", "veth", "peer", "name", port, "netns", switch)
        _ip("-n", switch, "link", "set", port, "master", "br0", "up")
        _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        _ip("-n", namespace, "link", "set", "lo", "up")

    def fill(self, count: int, cpus: int = 4) -> None:
        """Starts nodes until so many work beside the head, others for those that do not come, and waits for all."""
        for _ in range(_TRIES):
            while len(self.workers) < count:
                self.start(f"node{len(self.nodes)}", cpus)
            if all(node.joined() for node in self.workers):
                return
        raise AssertionError(self.nodes[-1].log.read_text())

    @property
    def workers(self) -> list[Node]:
        """The nodes beside the head that are well."""
        return [node for node in self.nodes[1:] if not node.gone]

    def drain(self, node: Node) -> None:
        """Announces that a node goes, as clouds do with machines that they take back."""
        drain = DRAIN.format(address=self.address, name=node.name)
        subprocess.run(self.at_head(sys.executable, "-c", drain), env=self.environment, check=True)

    def gcs(self) -> int:
        """The process id of the head's GCS."""
        below = processes_below(self.head.process.pid)
        return next(pid for pid in below if b"gcs_server" in (Path("/proc") / str(pid) / "cmdline").read_bytes())

    def inside(self, namespace: str | None) -> list[str]:
        """Words before a command that run it in a namespace."""
        return ["ip", "netns", "exec", namespace] if namespace else []

    def at_head(self, *command: str) -> list[str]:
        """A command as it is run on the head's machine."""
        return [*self.inside(self.head.namespace), *command]


def processes_below(pid: int) -> list[int]:
    """All descendants of a process, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    below = [pid]
    for one in below:
        below += children.get(one, [])
    return below[1:]
