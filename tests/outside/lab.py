"""Real nodes to be hurt: processes, each in a network namespace of its own if asked, and HTTP clients.

`alone()` puts the whole program into namespaces of its own first (network, mounts, processes), so that whatever
happens nothing is left behind on the machine, and nothing outside of it is touched.
"""
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

MARK = "MESHKV_LAB"


def alone():
    """Runs this program again inside of namespaces of its own; False, loudly, where that is not allowed."""
    if os.environ.get(MARK):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return True
    words = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if shutil.which("ip") is None or subprocess.run([*words, "true"], capture_output=True).returncode != 0:
        print("SKIPPED: no network namespaces here (root and iproute2 are needed)", flush=True)
        return False
    os.environ[MARK] = "1"
    os.execvp(words[0], [*words, sys.executable, *sys.argv])


def wait(what, condition, limit=20.0, pause=0.01):
    """The seconds it took until `condition` gave something true."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < limit, f"not so after {limit} s: {what}"
        time.sleep(pause)
    return time.monotonic() - begun


class Client:
    """One connection, kept open, opened again after an error. Raises OSError; the caller knows what that means."""

    def __init__(self, address, timeout=5.0):
        self.address, self.timeout, self.stream, self.rest = address, timeout, None, b""

    def close(self):
        if self.stream is not None:
            self.stream.close()
        self.stream, self.rest = None, b""

    def get(self, path):
        """Status, headers in lower case, body."""
        try:
            if self.stream is None:
                self.stream = socket.create_connection(self.address, self.timeout)
                self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.stream.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            data = self.rest
            while b"\r\n\r\n" not in data:
                data += self._more()
            head, _, data = data.partition(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
            length = int(headers["content-length"])
            parts, have = [data], len(data)
            while have < length:
                parts.append(self._more())
                have += len(parts[-1])
            data = b"".join(parts)
            body, self.rest = data[:length].decode(), data[length:]
            if headers.get("connection") == "close":
                self.close()
            return int(lines[0].split()[1]), headers, body
        except (OSError, KeyError, ValueError) as error:
            self.close()
            raise error if isinstance(error, OSError) else OSError(f"not an answer: {error!r}")

    def _more(self):
        data = self.stream.recv(1 << 18)
        if not data:
            raise ConnectionResetError("closed before the answer")
        return data


class Node:
    """One node. `where`: the name of a network namespace, and its address for clients; none: on loopback."""

    def __init__(self, lab, name, join=(), where=None, more=(), env=None, port=0, ready=True):
        self.lab, self.name, self.where = lab, name, where
        self.join, self.more, self.env, self.port = list(join), list(more), env or {}, port
        self.starts = 0
        self.process = None
        self.start(ready)

    def start(self, wait_ready=True):
        self.address = None
        self.starts += 1
        self.log = os.path.join(self.lab.folder, f"{self.name}-{self.starts}.log")
        words = [self.lab.binary, "--name", self.name, "--workers", "2", *self.more]
        if self.where:
            words = ["ip", "netns", "exec", self.where[0], *words, "--host", "0.0.0.0", "--port", "8080"]
        else:
            words += ["--port", str(self.port), "--peer-port", "0"]
        for url in self.join:
            words += ["--join", url]
        self.begun = time.monotonic()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(words, stderr=log, stdout=log, env={**os.environ, **self.env},
                                            preexec_fn=with_parent)
        self.lab.processes.append(self.process)
        if wait_ready:
            self.wait_ready()

    def wait_ready(self, limit=30.0):
        def ready():
            assert self.process.poll() is None, f"{self.name} ended: {self.text()[-2000:]}"
            return re.search(r"\bready\s*$", self.text(), re.M)
        wait(f"{self.name} is ready", ready, limit)
        self.ready_after = time.monotonic() - self.begun
        found = re.search(r"http://([0-9.]+):(\d+)   peers \S+:(\d+)", self.text())
        self.address = (self.where[1] if self.where else found[1], int(found[2]))
        self.peer_port = int(found[3])

    def text(self):
        with open(self.log, errors="replace") as log:
            return log.read()

    def client(self, timeout=5.0):
        return Client(self.address, timeout)

    def get(self, path, timeout=5.0):
        client = self.client(timeout)
        try:
            return client.get(path)
        finally:
            client.close()

    def ok(self, path):
        status, _, body = self.get(path)
        assert status == 200, f"{self.name}{path}: {status} {body}"
        return body

    def json(self, path):
        return json.loads(self.get(path)[2])

    def mesh(self):
        return self.json("/status")["mesh"]

    def sees(self, name):
        """The state in which this node sees the member of that name; None: it does not."""
        return next((peer["state"] for peer in self.mesh()["peers"] if peer["name"] == name), None)

    def metric(self, name, **labels):
        """The sum over all samples of this name that have these labels."""
        total = 0.0
        for line in self.get("/metrics")[2].splitlines():
            if line.startswith(name) and line[len(name):len(name) + 1] in (" ", "{"):
                if all(f'{k}="{v}"' in line for k, v in labels.items()):
                    total += float(line.rsplit(" ", 1)[1])
        return total

    def url(self, host=None):
        return f"http://{host or self.address[0]}:{self.address[1]}"

    def pid(self):
        return self.process.pid

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self, limit=15.0):
        self.signal(signal.SIGTERM)
        assert self.process.wait(limit) == 0, f"{self.name}: {self.text()[-1000:]}"


def with_parent():
    """In the child: it ends when this program does, however that ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Lab:
    """The folder of the logs, and what was started, which `close` ends."""

    def __init__(self, binary):
        self.binary = os.path.abspath(binary)
        self.folder = tempfile.mkdtemp(prefix="meshkv-lab-")
        self.processes = []

    def run(self, *words, check=True):
        done = subprocess.run(words, capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.returncode} {done.stderr[-2000:]}"
        return done

    def background(self, *words, **more):
        self.processes.append(subprocess.Popen(words, preexec_fn=with_parent, **more))
        return self.processes[-1]

    def end_processes(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        self.processes = []

    def close(self):
        self.end_processes()
        shutil.rmtree(self.folder)
