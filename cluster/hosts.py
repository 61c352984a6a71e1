"""Several hosts on one machine: network namespaces with addresses of their own, a Ray node in each, S3 in another.

    sudo python -m cluster.hosts [--nodes 3]

As `make local-cluster`, with what only a network has: links that can be cut and hosts that can be lost. Linux, root
and iproute2 (`ip`) are needed. Everything hangs on one bridge, BRIDGE, whose address ADDRESS.1 is this machine's own.
"""

import argparse
import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.local import LocalCluster, write_environment
from cluster.local_s3 import LocalS3, local_s3
from cluster.nodes import Node, end, environment_of, start_node

BRIDGE = "fcnn-bridge"
ADDRESS = "10.77.0"
S3_HOST = 250
GCS_PORT, DASHBOARD_PORT, CLIENT_PORT = 6379, 8265, 10001


class Hosts:
    """The namespaces and the Ray node in each; number 1 is the head's."""

    def __init__(self, s3: LocalS3, folder: Path, token: str) -> None:
        self.s3, self.folder, self.token = s3, folder, token
        self.nodes: dict[int, Node] = {}

    @property
    def cluster(self) -> LocalCluster:
        """The cluster as jobs.submit sees it."""
        nodes = list(self.nodes.values())
        return LocalCluster(
            f"http://{address(1)}:{DASHBOARD_PORT}", f"{address(1)}:{GCS_PORT}", self.token, nodes, self.folder
        )

    def start(self, number: int) -> None:
        """Start the Ray node of host `number`, which joins the head's cluster (or is the head)."""
        temp = temp_folder(number)
        shutil.rmtree(temp, ignore_errors=True)
        role = [f"--address={address(1)}:{GCS_PORT}"]
        if number == 1:
            role = ["--head", f"--port={GCS_PORT}", f"--ray-client-server-port={CLIENT_PORT}",
                    f"--dashboard-host={address(1)}", f"--dashboard-port={DASHBOARD_PORT}"]  # fmt: skip
        self.nodes[number] = start_node(
            f"host-{number}",
            [*role, "--num-cpus=1", f"--temp-dir={temp}"],
            environment_of(self.s3.environment, self.token),
            self.folder,
            host=address(number),
            within=("ip", "netns", "exec", name(number)),
        )

    def cut(self, number: int) -> None:
        """Pull the plug of a host's network: nothing comes in or goes out, and nobody is told."""
        _ip("link", "set", _cable(number), "down")

    def mend(self, number: int) -> None:
        """Put it back."""
        _ip("link", "set", _cable(number), "up")

    def kill(self, number: int) -> None:
        """Lose a host: every process of its node ends at once, by SIGKILL."""
        import psutil

        processes = psutil.Process(self.nodes[number].process.pid)
        for process in [*processes.children(recursive=True), processes]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.nodes.pop(number).process.wait()

    def hosts_of(self, title: str) -> set[int]:
        """The hosts on which a process runs whose command line holds `title`."""
        import psutil

        places = {Path(f"/var/run/netns/{name(number)}").stat().st_ino: number for number in self.nodes}
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if title in " ".join(process.cmdline()):
                    found.add(places.get(Path(f"/proc/{process.pid}/ns/net").stat().st_ino, 0))
        return found - {0}

    def stop(self) -> None:
        """End every node."""
        for node in self.nodes.values():
            end(node.process)

    def restart(self, number: int) -> None:
        """Bring a host back, whatever is left of its node."""
        if number in self.nodes:
            self.kill(number)
        self.start(number)


@contextlib.contextmanager
def hosts(num_nodes: int, folder: Path) -> Iterator[Hosts]:
    """`num_nodes` hosts with a Ray node of one CPU each, and one with S3; all gone at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_network([*range(1, num_nodes + 1), S3_HOST]))
        s3 = stack.enter_context(
            local_s3(folder / "s3", host=address(S3_HOST), within=("ip", "netns", "exec", name(S3_HOST)))
        )
        found = Hosts(s3, folder, secrets.token_hex(32))
        stack.callback(found.stop)
        for number in range(1, num_nodes + 1):
            found.start(number)
        yield found


def address(number: int) -> str:
    """The address of a host."""
    return f"{ADDRESS}.{10 + number if number != S3_HOST else S3_HOST}"


def name(number: int) -> str:
    """The namespace of a host."""
    return f"fcnn{number}"


def temp_folder(number: int) -> Path:
    """Ray's own files and logs on a host; a short path, as sockets lie below it."""
    return Path(f"/tmp/fcnn-host{number}")


@contextlib.contextmanager
def _network(numbers: Sequence[int]) -> Iterator[None]:
    if os.geteuid() or not shutil.which("ip"):
        raise RuntimeError("network namespaces need root and the `ip` program (iproute2)")
    _remove(numbers)
    try:
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{ADDRESS}.1/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for number in numbers:
            _ip("netns", "add", name(number))
            _ip("link", "add", _cable(number), "type", "veth", "peer", "name", "eth0", "netns", name(number))
            _ip("link", "set", _cable(number), "master", BRIDGE, "up")
            _ip("-n", name(number), "addr", "add", f"{address(number)}/24", "dev", "eth0")
            _ip("-n", name(number), "link", "set", "eth0", "up")
            _ip("-n", name(number), "link", "set", "lo", "up")
            _ip("-n", name(number), "route", "add", "default", "via", f"{ADDRESS}.1")
        yield
    finally:
        _remove(numbers)


def _remove(numbers: Sequence[int]) -> None:
    for number in numbers:
        _ip("netns", "del", name(number), check=False)
        _ip("link", "del", _cable(number), check=False)
    _ip("link", "del", BRIDGE, check=False)


def _cable(number: int) -> str:
    """This machine's end of a host's cable; a device's name has at most 15 characters."""
    return f"fcnn-veth{number}"


def _ip(*arguments: str, check: bool = True) -> None:
    found = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if check and found.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {found.stderr.strip()}")


def main() -> None:
    """Run the hosts in the foreground until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=3, help="hosts with a Ray node; default: %(default)s")
    parser.add_argument("--directory", default="work/hosts", help="logs and bucket; default: %(default)s")
    arguments = parser.parse_args()
    directory = Path(arguments.directory).absolute()
    try:
        with hosts(arguments.nodes, directory) as found:
            file = write_environment(directory, found.cluster, found.s3)
            print(f"{arguments.nodes} hosts, dashboard {found.cluster.url}; in another shell: source {file}")
            print(f"cut a link: ip link set {_cable(2)} down; mend it: ... up. Ctrl-C ends all", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print("ended")
    except RuntimeError as error:
        sys.exit(f"hosts: {error}")


if __name__ == "__main__":
    main()
