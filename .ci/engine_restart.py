#!/usr/bin/env python3
"""The restart of an engine, on an engine of its own: nobody's containers are touched.

Called by .ci/docker. Runs in namespaces of its own (network, mounts, processes), so that nothing outlives it. Needs
root, dockerd, and the image `meshkv` in the machine's engine.
"""
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("COMPOSE_PROJECT_NAME", "unused")
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from compose import THREADS, Load, run, wait  # noqa: E402

INSIDE = "MESHKV_CI_INSIDE"


class Engine:
    def __init__(self, folder):
        self.folder = folder
        self.location = f"unix://{folder}/docker.sock"
        self.log = open(f"{folder}/log", "a")
        with open(f"{folder}/daemon.json", "w") as file:
            file.write("{}")

    def start(self):
        # Containers live on without it, as they do wherever an engine is updated without an outage.
        self.process = subprocess.Popen(
            ["dockerd", "--config-file", f"{self.folder}/daemon.json", "--data-root", f"{self.folder}/data",
             "--exec-root", f"{self.folder}/exec", "--pidfile", f"{self.folder}/pid", "-H", self.location,
             "--live-restore", "--storage-driver", "vfs", "--iptables=false", "--ip-masq=false"],
            stdout=self.log, stderr=self.log)

    def answers(self):
        asked = subprocess.run(["docker", "-H", self.location, "version"], capture_output=True)
        return asked.returncode == 0

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)

    def docker(self, *words):
        return run("docker", "-H", self.location, *words)

    def node(self, name):
        self.docker("run", "-d", "--name", name, "--label", "com.docker.compose.service=database", "--label",
                    "com.docker.compose.project=restart", "meshkv")


def page():
    try:
        connection = http.client.HTTPConnection("127.0.0.1", 9900, timeout=2)
        connection.request("GET", "/status")
        return json.load(connection.getresponse())
    except OSError:
        return {"backends": [], "source": {"fault": "no answer", "stream": False}}


def states():
    return {backend["name"]: backend["state"] for backend in page()["backends"]}


def main():
    folder = tempfile.mkdtemp(prefix="meshkv-engine-")
    engine = Engine(folder)
    balancer = None
    try:
        run("ip", "link", "set", "lo", "up")
        engine.start()
        try:
            wait("the engine answers", lambda: engine.answers() or engine.process.poll() is not None, 60)
            assert engine.process.poll() is None
        except AssertionError:
            print("SKIPPED: no second engine can be started here; an engine's restart is NOT tested", flush=True)
            return
        with subprocess.Popen(["docker", "save", "meshkv"], stdout=subprocess.PIPE) as image:
            subprocess.run(["docker", "-H", engine.location, "load"], stdin=image.stdout, check=True,
                           stdout=subprocess.DEVNULL)
        made = run("docker", "create", "meshkv")
        run("docker", "cp", f"{made}:/meshkv", f"{folder}/meshkv")
        run("docker", "rm", made)
        for name in ("n1", "n2", "n3"):
            engine.node(name)
        balancer = subprocess.Popen(
            [f"{folder}/meshkv", "balance", "--docker", engine.location, "--group-name", "database", "--group-port",
             "8080", "--port", "8000", "--status-port", "9900"], stderr=open(f"{folder}/balancer", "w"))
        all_up = {"n1": "up", "n2": "up", "n3": "up"}
        wait("three nodes are up", lambda: states() == all_up)
        wait("the stream is open", lambda: page()["source"]["stream"])
        with Load("127.0.0.1", 8000) as load:
            engine.stop()
            wait("the engine is missed", lambda: page()["source"]["fault"])
            time.sleep(3)
            assert states() == all_up, states()
            engine.start()
            wait("it is found again", lambda: page()["source"]["stream"] and not page()["source"]["fault"], 60)
            assert states() == all_up, states()
        print(f"ok: an engine restarts: the nodes stay, the stream is opened again; {load.none_failed()}", flush=True)
        # While it is away a node dies, which only the health checks can tell.
        victim = int(engine.docker("inspect", "-f", "{{.State.Pid}}", "n2"))
        with Load("127.0.0.1", 8000) as load:
            engine.stop()
            wait("the engine is missed", lambda: page()["source"]["fault"])
            os.kill(victim, signal.SIGKILL)
            wait("the dead node is down", lambda: states().get("n2") == "down")
            engine.start()
            wait("the list is read again", lambda: "n2" not in states(), 60)
            engine.node("n4")
            wait("a new node is up", lambda: states() == {"n1": "up", "n3": "up", "n4": "up"})
        assert len(load.failed) <= THREADS, load.failed[:5]
        print(f"ok: while an engine is away the health checks rule, and it is followed again when it is back; "
              f"{len(load.failed)} in flight lost of {load.done}", flush=True)
    except AssertionError as reason:
        print(f"FAILED: {reason}")
        for name in ("log", "balancer"):
            if os.path.exists(f"{folder}/{name}"):
                print(open(f"{folder}/{name}").read()[-3000:])
        sys.exit(1)
    finally:
        if balancer:
            balancer.kill()
        if engine.process.poll() is None:
            ids = engine.docker("ps", "-aq").split()
            if ids:
                engine.docker("rm", "-f", *ids)
            engine.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    if shutil.which("dockerd") is None:
        print("SKIPPED: no dockerd on this machine; an engine's restart is NOT tested")
    elif os.environ.get(INSIDE):
        main()
    else:
        os.environ[INSIDE] = "1"
        os.execvp("unshare", ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child",
                              sys.executable, os.path.abspath(__file__)])
