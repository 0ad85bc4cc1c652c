#!/usr/bin/env python3
"""The compose flow on a real engine: who receives traffic, what fails, how long discovery takes.

Called by .ci/docker with the images built, in the folder of the compose file. Every step asserts; the first that
fails ends the run with its reason. Needs root, to look into the balancer's network namespace.
"""
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time

COMPOSE = os.environ.get("COMPOSE", "docker-compose").split()
PROJECT = os.environ["COMPOSE_PROJECT_NAME"]
THREADS = 8
passed = 0


def run(*words, check=True, env=None):
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **(env or {})})
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout.strip()


def compose(*words, **more):
    return run(*COMPOSE, *words, **more)


def inspect(container, what):
    return run("docker", "inspect", "-f", what, container)


def ok(text):
    global passed
    passed += 1
    print(f"ok: {text}", flush=True)


def wait(what, condition, limit=20.0):
    begun = time.monotonic()
    while True:
        value = condition()
        if value:
            return time.monotonic() - begun
        assert time.monotonic() - begun < limit, f"not so after {limit} s: {what}"
        time.sleep(0.01)


# Runs in the balancer's network namespace: one line for each look at its status page.
LOOK = r"""
import http.client, json, sys, time
while True:
    try:
        c = http.client.HTTPConnection("127.0.0.1", 9900, timeout=2)
        c.request("GET", "/status")
        page = json.load(c.getresponse())
        c.close()
    except OSError as error:
        page = {"backends": [], "down": str(error)}
    print(time.time_ns(), json.dumps(page), flush=True)
    time.sleep(0.01)
"""


class Observer:
    """The balancer's status page, looked at every 10 ms, and the engine's events."""

    def __init__(self, proxy):
        self.page = {"backends": []}
        self.changes = []
        self.events = []
        # Backends that had a connection before they were up.
        self.early = set()
        self.been_up = set()
        self.lock = threading.Lock()
        pid = inspect(proxy, "{{.State.Pid}}")
        self.looker = subprocess.Popen(["nsenter", "-t", pid, "-n", sys.executable, "-c", LOOK],
                                       stdout=subprocess.PIPE, text=True)
        self.listener = subprocess.Popen(["docker", "events", "--filter", "type=container", "--filter", "type=network",
                                          "--format", "{{json .}}"], stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._look, daemon=True).start()
        threading.Thread(target=self._listen, daemon=True).start()
        time.sleep(0.3)

    def _look(self):
        states = {}
        for line in self.looker.stdout:
            at, text = line.split(" ", 1)
            page = json.loads(text)
            now = {b["name"]: b["state"] for b in page["backends"]}
            with self.lock:
                for b in page["backends"]:
                    if b["state"] == "up":
                        self.been_up.add(b["name"])
                    elif b["name"] not in self.been_up and b["total"] > 0:
                        self.early.add(b["name"])
                for name in set(states) | set(now):
                    if states.get(name) != now.get(name, "gone"):
                        self.changes.append((int(at), name, now.get(name, "gone")))
                self.page = page
            states = now

    def _listen(self):
        for line in self.listener.stdout:
            event = json.loads(line)
            with self.lock:
                self.events.append(event)

    def close(self):
        self.looker.kill()
        self.listener.kill()

    def backends(self):
        with self.lock:
            return {b["name"]: b for b in self.page["backends"]}

    def up(self):
        return sorted(name for name, b in self.backends().items() if b["state"] == "up")

    def changed(self, name, states, since_ns):
        """When the backend first was in one of the states."""
        with self.lock:
            times = [at for at, who, state in self.changes if who == name and state in states and at >= since_ns]
        return min(times, default=None)

    def event(self, container, actions, since_ns):
        with self.lock:
            times = [e["timeNano"] for e in self.events if e["Action"] in actions
                     and e["Actor"]["ID"] == container and e["timeNano"] >= since_ns - 10**9]
        return min(times, default=None)

    def reacted(self, name, container, actions, states, since_ns):
        """Milliseconds from the event to the state; it may look negative by the observer's own 10 ms."""
        wait(f"{name} becomes {states}", lambda: self.changed(name, states, since_ns))
        wait(f"{actions} of {name}", lambda: self.event(container, actions, since_ns))
        return (self.changed(name, states, since_ns) - self.event(container, actions, since_ns)) / 1e6


class Load:
    """Threads that never stop asking, a connection for each request."""

    def __init__(self, host, port=80, path="/getKeys?limit=1"):
        self.host, self.port, self.path = host, port, path
        self.stop = False
        self.done = 0
        self.failed = []
        self.threads = [threading.Thread(target=self._ask) for _ in range(THREADS)]

    def _ask(self):
        while not self.stop:
            begun = time.time_ns()
            try:
                connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
                connection.request("GET", self.path, headers={"Connection": "close"})
                answer = connection.getresponse()
                answer.read()
                connection.close()
                if answer.status != 200:
                    self.failed.append((begun, f"status {answer.status}"))
            except (OSError, http.client.HTTPException) as error:
                self.failed.append((begun, repr(error)))
            self.done += 1
            time.sleep(0.002)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        time.sleep(0.3)
        return self

    def __exit__(self, *_):
        time.sleep(0.3)
        self.stop = True
        for thread in self.threads:
            thread.join()

    def none_failed(self):
        assert self.done > 100, f"only {self.done} requests"
        assert not self.failed, f"{len(self.failed)} of {self.done} failed: {self.failed[:5]}"
        return f"{self.done} requests, none failed"


def ids(service="database"):
    return compose("ps", "-q", service).split()


def name_of(container):
    return inspect(container, "{{.Name}}").lstrip("/")


def address_of(container, network=f"{PROJECT}_default"):
    return inspect(container, f'{{{{(index .NetworkSettings.Networks "{network}").IPAddress}}}}')


def healthy(address, port=8080):
    try:
        connection = http.client.HTTPConnection(address, port, timeout=1)
        connection.request("GET", "/healthcheck")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False


def total(observer, name):
    return observer.backends().get(name, {}).get("total", 0)


def started():
    compose("up", "-d", "--scale", "database=6")
    proxy = ids("proxy")[0]
    observer = Observer(proxy)
    wait("six nodes are up", lambda: len(observer.up()) == 6)
    ok("up starts a balancer and six nodes, and all six are routable")
    return proxy, observer


def spread(observer, host):
    before = {name: total(observer, name) for name in observer.up()}
    with Load(host) as load:
        time.sleep(1)
    wait("each has had its share", lambda: all(total(observer, name) > seen + 20 for name, seen in before.items()))
    ok(f"traffic reaches all of them: {load.none_failed()}")


def listed(address):
    """The nodes that this one lists, by name: a container's short id."""
    return [node["name"] for node in ask(address, "/ping", 8080)["nodes"]]


def ask(host, path, port=80):
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 200, f"{path}: status {answer.status}: {body[:200]}"
    return json.loads(body)


def attach(observer, host):
    """A node more: it copies what the others hold, and only then is it ready and receives traffic."""
    written = {f"attach{n}": f"value {n}" for n in range(2000)}
    connection = http.client.HTTPConnection(host, 80, timeout=30)
    for key, value in written.items():
        connection.request("GET", f"/set?k={key}&v={value.replace(' ', '+')}")
        answer = connection.getresponse()
        assert answer.status == 200, answer.status
        answer.read()
    connection.close()
    with Load(host) as load:
        since = time.time_ns()
        container = compose("run", "-d", "--no-deps", "database").split()[-1]
        container = inspect(container, "{{.Id}}")
        name, address = name_of(container), address_of(container)
        wait("the attached node is ready", lambda: healthy(address))
        ready = time.time_ns()
        # Of itself, not through the balancer.
        held = {pair["k"]: pair["v"] for pair in ask(address, "/getAll?prefix=attach", 8080)}
        wait("it is routed to", lambda: total(observer, name) > 0)
        took = (time.time_ns() - ready) / 1e6
    assert took <= 1000, f"{took:.0f} ms from ready to the first request"
    assert held == written, f"{len(held)} of {len(written)} pairs are in the attached node when it becomes ready"
    # It copied before it was ready, and nothing came before the balancer had seen that it is.
    log = subprocess.run(["docker", "logs", container], capture_output=True, text=True).stderr
    copied = re.search(r"copied (\d+) records.*?^ready", log, re.S | re.M)
    assert copied and int(copied.group(1)) >= len(written), log
    assert name not in observer.early, "a connection came to it while it was new or warming"
    text = load.none_failed()
    up = (observer.changed(name, ("up",), since) - observer.event(container, ("start",), since)) / 1e6
    with Load(host) as load:
        run("docker", "rm", "-f", container)
        wait("it is gone", lambda: name not in observer.backends())
    assert len(load.failed) <= THREADS, load.failed[:5]
    ok(f"run -d attaches a node: up {up:.0f} ms after its start with all {len(written)} pairs, nothing routed to it "
       f"before, first request within {took:.0f} ms; {text}")


def scaled(observer, host):
    before = {container[:12] for container in ids()}
    with Load(host) as load:
        for count in (3, 6, 2):
            compose("up", "-d", "--no-recreate", "--scale", f"database={count}")
            wait(f"{count} nodes are up", lambda: len(observer.up()) == count)
    ok(f"scale 3, 6, 2 under load: {load.none_failed()}")
    compose("up", "-d", "--no-recreate", "--scale", "database=6")
    wait("six again", lambda: len(observer.up()) == 6)
    # Who has left is a member no more, neither as it was nor under a new lifetime.
    left = before - {container[:12] for container in ids()}
    wait("those who left are not missed", lambda: not left & set(listed(address_of(ids()[0]))))
    assert left, "nobody has left"


class Late(AssertionError):
    """Noted, but not within 100 ms."""


def promptly(ms):
    if ms > 100:
        raise Late(f"{ms:.0f} ms after the event")


def unless_late(check, *arguments):
    """A machine that is busy with something else is late now and then, a balancer that polls is late every time."""
    for _ in range(2):
        try:
            return check(*arguments)
        except Late as late:
            print(f"once more: {late}", flush=True)
    return check(*arguments)


def stopped(observer, host):
    container = ids()[0]
    name = name_of(container)
    with Load(host) as load:
        since = time.time_ns()
        run("docker", "stop", container)
        ms = observer.reacted(name, container, ("kill",), ("draining", "gone"), since)
        assert inspect(container, "{{.State.ExitCode}}") == "0", "it did not drain"
        # One that was only missed would still be listed, as down.
        wait("the others have been told that it leaves", lambda: container[:12] not in listed(address_of(ids()[1])))
        run("docker", "start", container)
        wait("six again", lambda: len(observer.up()) == 6)
    promptly(ms)
    ok(f"stop of a node: exit code 0, leave announced, nothing new {ms:.0f} ms after the signal, back after start; {load.none_failed()}")


def paused(observer, host):
    container = ids()[1]
    name = name_of(container)
    with Load(host) as load:
        since = time.time_ns()
        run("docker", "pause", container)
        ms = observer.reacted(name, container, ("pause",), ("paused",), since)
        time.sleep(0.2)
        before = total(observer, name)
        time.sleep(1.5)
        assert total(observer, name) == before, "a paused node was connected to"
        run("docker", "unpause", container)
        wait("six again", lambda: len(observer.up()) == 6)
    promptly(ms)
    ok(f"pause: nothing new {ms:.0f} ms after the event; {load.none_failed()}, those that it held were answered later")


def killed(observer, host):
    container = ids()[2]
    name = name_of(container)
    with Load(host) as load:
        since = time.time_ns()
        run("docker", "kill", "-s", "KILL", container)
        ms = observer.reacted(name, container, ("die",), ("draining", "gone"), since)
        run("docker", "start", container)
        wait("six again", lambda: len(observer.up()) == 6)
    promptly(ms)
    assert len(load.failed) <= THREADS, load.failed[:5]
    ok(f"kill -9 of a node: nothing new {ms:.0f} ms after the event; {len(load.failed)} in flight lost of {load.done}")


def disconnected(observer, host):
    container, network = ids()[3], f"{PROJECT}_default"
    name = name_of(container)
    with Load(host) as load:
        run("docker", "network", "disconnect", network, container)
        wait("it is unreachable", lambda: observer.backends()[name]["state"] == "unreachable", 5)
        reason = observer.backends()[name]["reason"]
        before = total(observer, name)
        time.sleep(1)
        assert total(observer, name) == before
        # With the name that compose gave it: that is what DNS answers to.
        run("docker", "network", "connect", "--alias", "database", network, container)
        wait("six again", lambda: len(observer.up()) == 6)
    assert "shares no network" in reason, reason
    assert len(load.failed) <= THREADS, load.failed[:5]
    ok(f"network disconnect: {reason}; back after connect; {len(load.failed)} in flight lost of {load.done}")


def moved(observer, host):
    container, network = ids()[4], f"{PROJECT}_default"
    name, old = name_of(container), address_of(ids()[4])
    with Load(host) as load:
        run("docker", "stop", container)
        # Others take the free addresses, so that it comes back elsewhere.
        squatters = []
        while old not in [address_of(squatter) for squatter in squatters]:
            assert len(squatters) < 20, f"nobody was given {old}"
            squatters.append(run("docker", "run", "-d", "--network", network, "meshkv"))
        run("docker", "start", container)
        new = address_of(container)
        wait("its new address is up", lambda: observer.backends().get(name, {}).get("address") == f"{new}:8080"
             and observer.backends()[name]["state"] == "up")
        before = total(observer, name)
        wait("it is routed to", lambda: total(observer, name) > before)
    run("docker", "rm", "-f", *squatters)
    assert new != old, f"it came back at {old}"
    ok(f"a restart moved a node from {old} to {new}, and traffic followed; {load.none_failed()}")


def recreated(observer, host):
    """All at once, as compose does it: who asks meanwhile may be refused, and the balancer follows."""
    old = set(ids())
    compose("up", "-d", "--no-deps", "--force-recreate", "--scale", "database=6", "database")
    new = ids()
    assert len(new) == 6 and not old & set(new), (old, new)

    def follows():
        found = {b["address"] for b in observer.backends().values() if b["state"] == "up"}
        return found == {f"{address_of(container)}:8080" for container in new}

    wait("the six new nodes are the backends", follows)
    with Load(host) as load:
        time.sleep(0.5)
    ok(f"recreate: the balancer follows to six other containers; {load.none_failed()}")


def balancer_killed(proxy, observer):
    observer.close()
    begun = time.monotonic()
    run("kill", "-9", inspect(proxy, "{{.State.Pid}}"))
    port = int(os.environ["PORT"])
    wait("it is back", lambda: inspect(proxy, "{{.State.Running}}") == "true" and int(inspect(proxy, "{{.State.Pid}}")))
    wait("it serves", lambda: healthy("127.0.0.1", port))
    took = time.monotonic() - begun
    observer = Observer(proxy)
    wait("six again", lambda: len(observer.up()) == 6)
    ok(f"kill -9 of the balancer: it is started again and serves after {took:.1f} s")
    return observer


def other_project(observer):
    """A second project with a service of the same name, and a balancer that belongs to neither."""
    env = {"COMPOSE_PROJECT_NAME": f"{PROJECT}two", "PORT": str(int(os.environ["PORT"]) + 1)}
    try:
        compose("up", "-d", "--scale", "database=2", env=env)
        theirs = compose("ps", "-q", "proxy", env=env).split()[0]
        their = Observer(theirs)
        wait("two nodes are up there", lambda: len(their.up()) == 2)
        time.sleep(0.5)
        assert all(name.startswith(f"{PROJECT}two") for name in their.backends()), their.backends().keys()
        assert not any(name.startswith(f"{PROJECT}two") for name in observer.backends()), observer.backends().keys()
        their.close()
        ok("two projects: each balancer has its own nodes only")
        lone = run("docker", "run", "-d", "--user", "0:0", "-v", "/var/run/docker.sock:/var/run/docker.sock:ro",
                   "meshkv", "balance", "--port", "8099")
        try:
            logs = lambda: subprocess.run(["docker", "logs", lone], capture_output=True, text=True).stderr
            wait("it says so", lambda: "several projects" in logs())
            assert "GROUP_PROJECT" in logs()
            answer = subprocess.run(["nsenter", "-t", inspect(lone, "{{.State.Pid}}"), "-n", "curl", "-s", "-o", "/dev/null",
                                     "-w", "%{http_code}", "http://127.0.0.1:8099/"], capture_output=True, text=True)
            assert answer.stdout == "503", answer
            ok("a balancer of neither project routes nowhere and says which variable to set")
        finally:
            run("docker", "rm", "-f", lone)
    finally:
        compose("down", "-v", "--timeout", "1", env=env, check=False)


def two_networks():
    """Nodes in two networks, the balancer in one of them, which is not the first by name."""
    env = {"COMPOSE_PROJECT_NAME": f"{PROJECT}net", "PORT": str(int(os.environ["PORT"]) + 2),
           "COMPOSE_FILE": "docker-compose.yml:two-networks.yml"}
    with open("two-networks.yml", "w") as file:
        file.write("services:\n  proxy: {networks: [zebra]}\n  database: {networks: [aardvark, zebra]}\n"
                   "networks: {aardvark: {}, zebra: {}}\n")
    try:
        compose("up", "-d", "--scale", "database=2", env=env)
        proxy = compose("ps", "-q", "proxy", env=env).split()[0]
        observer = Observer(proxy)
        wait("both are up", lambda: len(observer.up()) == 2)
        nodes = compose("ps", "-q", "database", env=env).split()
        wanted = sorted(address_of(node, f"{PROJECT}net_zebra") + ":8080" for node in nodes)
        found = sorted(b["address"] for b in observer.backends().values())
        observer.close()
        assert wanted == found, (wanted, found)
        ok("two networks: the nodes are reached by the one that the balancer is in")
    finally:
        compose("down", "-v", "--timeout", "1", env=env, check=False)
        os.remove("two-networks.yml")


def socket_proxy_image():
    """HAProxy as this machine has it, with its libraries and nothing else."""
    binary = shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if binary is None:
        return None
    libraries = [word for line in run("ldd", binary).splitlines() for word in line.split() if word.startswith("/")]
    files = [path.lstrip("/") for path in [binary, *libraries]]
    with subprocess.Popen(["tar", "-C", "/", "-ch", *files], stdout=subprocess.PIPE) as tar:
        subprocess.run(["docker", "import", "-", "meshkv-ci/socket-proxy"], stdin=tar.stdout, check=True,
                       stdout=subprocess.DEVNULL)
    return binary


def with_socket_proxy(text, binary):
    """The compose file after what its comment on the socket proxy says was done, with HAProxy in the place of the
    image that the comment names, which takes a registry. HAProxy is given the comment's list of paths; the
    restriction to one client (-allowfrom) has no counterpart here."""
    allowed = re.search(r"-allowGET=(.*)", text).group(1)
    with open("engine.cfg", "w") as file:
        file.write("defaults\n mode http\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n"
                   "frontend engine\n bind :2375\n"
                   f" http-request deny unless METH_GET {{ path -m reg ^({allowed})$ }}\n"
                   " default_backend socket\nbackend socket\n server socket unix@/var/run/docker.sock\n")
    lines, service, skipping = [], None, False
    for line in text.splitlines():
        if line.startswith("  # engine:") or service == "engine" and line.startswith("  #"):
            line = line.replace("# ", "", 1)
        key = re.fullmatch(r" {2}(\w+):", line)
        if key:
            service = key.group(1)
        if not line.startswith("      "):
            skipping = False
        if service == "proxy" and re.match(r" {4}(volumes|user):", line) or \
                service == "engine" and re.match(r" {4}command:", line):
            skipping = True
        if skipping:
            continue
        if service == "proxy":
            line = re.sub("DOCKER_API_LOCATION: .*", "DOCKER_API_LOCATION: tcp://engine:2375", line)
        if service == "engine" and line.startswith("    image:"):
            line = f'    image: meshkv-ci/socket-proxy\n    command: ["{binary}", "-f", "/engine.cfg", "-db"]'
        lines.append(line)
        if service == "engine" and line.startswith("      - /var/run/docker.sock"):
            lines.append("      - ./engine.cfg:/engine.cfg:ro")
    return "\n".join(lines) + "\n"


def behind_a_socket_proxy():
    """The compose file's commented variant: the balancer has no socket, and what stands before it lets three paths
    through."""
    binary = socket_proxy_image()
    if binary is None:
        print("SKIPPED: no haproxy on this machine; the variant with a socket proxy is NOT tested", flush=True)
        return
    env = {"COMPOSE_PROJECT_NAME": f"{PROJECT}sock", "PORT": str(int(os.environ["PORT"]) + 3),
           "COMPOSE_FILE": "socket-proxy.yml"}
    with open("docker-compose.yml") as source, open("socket-proxy.yml", "w") as file:
        file.write(with_socket_proxy(source.read(), binary))
    try:
        compose("up", "-d", "--scale", "database=2", env=env)
        proxy = compose("ps", "-q", "proxy", env=env).split()[0]
        assert inspect(proxy, "{{len .Mounts}}") == "0", "the balancer has a mount"
        engine = address_of(compose("ps", "-q", "engine", env=env).split()[0], f"{PROJECT}sock_default")
        observer = Observer(proxy)
        wait("both are up", lambda: len(observer.up()) == 2)
        wait("its stream is open", lambda: observer.page["source"]["stream"])
        assert "engine:2375" in observer.page["source"]["location"], observer.page["source"]
        for method, path, status in [("GET", "/version", 200), ("GET", "/v1.41/images/json", 403),
                                     ("POST", "/v1.41/containers/json", 403), ("GET", "/v1.41/containers/x/json", 403)]:
            connection = http.client.HTTPConnection(engine, 2375, timeout=10)
            connection.request(method, path)
            assert connection.getresponse().status == status, (method, path)
            connection.close()
        container = compose("ps", "-q", "database", env=env).split()[0]
        since = time.time_ns()
        run("docker", "kill", "-s", "KILL", container)
        ms = observer.reacted(name_of(container), container, ("die",), ("draining", "gone"), since)
        observer.close()
        promptly(ms)
        ok(f"behind a socket proxy: nothing else passes, nodes are found, a dead one is left {ms:.0f} ms after the event")
    finally:
        compose("down", "-v", "--timeout", "1", env=env, check=False)
        os.remove("socket-proxy.yml")


def by_name():
    """Without the engine's socket: every address of the service's name."""
    lone = run("docker", "run", "-d", "--network", f"{PROJECT}_default", "meshkv", "balance", "--port", "8099",
               "--dns-name", "database")
    try:
        observer = Observer(lone)
        wait("six addresses are up", lambda: len(observer.up()) == 6)
        observer.close()
        ok("DNS_NAME finds the six nodes without the engine, from a static binary on an empty image")
    finally:
        run("docker", "rm", "-f", lone)


def forbidden():
    """As nobody, whom the socket does not admit: it says so and goes on."""
    lone = run("docker", "run", "-d", "-v", "/var/run/docker.sock:/var/run/docker.sock:ro", "meshkv", "balance")
    try:
        logs = lambda: subprocess.run(["docker", "logs", lone], capture_output=True, text=True).stderr
        wait("it says so", lambda: "may not open the socket" in logs())
        assert inspect(lone, "{{.State.Running}}") == "true"
        ok("a forbidden socket is said to be one, and the balancer goes on")
    finally:
        run("docker", "rm", "-f", lone)


def suite(nodes, times):
    compose("up", "-d", "--no-recreate", "--scale", f"database={nodes}")
    for _ in range(times):
        compose("run", "--rm", "tests")
    ok(f"run tests: the black-box suite through the balancer, {nodes} nodes, {times} times in a row")


def stress(nodes):
    compose("up", "-d", "--no-recreate", "--scale", f"database={nodes}")
    compose("run", "--rm", "stress")
    ok(f"run stress: load through the balancer, {nodes} nodes")


def exits_are_clean():
    # Version 2 of the tool lists what runs, version 1 everything.
    ours = [f"label=com.docker.compose.{name}" for name in (f"project={PROJECT}", "oneoff=False")]
    containers = run("docker", "ps", "-aq", *[word for label in ours for word in ("--filter", label)]).split()
    exits = [inspect(container, "{{.State.ExitCode}}") for container in containers]
    assert len(exits) == 7 and set(exits) == {"0"}, exits


def brief(version):
    """What depends on the tool and not on the engine."""
    proxy, observer = started()
    host = address_of(proxy)
    attach(observer, host)
    scaled(observer, host)
    observer.close()
    suite(6, 1)
    stress(6)
    compose("stop")
    exits_are_clean()
    compose("down", "-v", "--timeout", "1")
    ok(f"{version}: stop and down")


def main():
    version = compose("version").splitlines()[0]
    print(version, flush=True)
    if os.environ.get("FLOW") == "brief":
        return brief(version)
    proxy, observer = started()
    host = address_of(proxy)
    spread(observer, host)
    attach(observer, host)
    scaled(observer, host)
    unless_late(stopped, observer, host)
    unless_late(paused, observer, host)
    unless_late(killed, observer, host)
    disconnected(observer, host)
    moved(observer, host)
    recreated(observer, host)
    observer = balancer_killed(proxy, observer)
    by_name()
    forbidden()
    other_project(observer)
    observer.close()
    two_networks()
    unless_late(behind_a_socket_proxy)
    # What one node takes all of them have when it answers: the suite need not know which one it reaches. Six,
    # because the members that the steps above have lost are not forgotten yet, and a quorum counts them.
    suite(6, int(os.environ.get("SUITE_TIMES", "10")))
    stress(6)
    compose("stop")
    exits_are_clean()
    ok("stop: everything drains and exits 0")


if __name__ == "__main__":
    try:
        main()
    except AssertionError as reason:
        print(f"FAILED: {reason}", flush=True)
        print(compose("logs", "--tail", "40", check=False)[-6000:])
        sys.exit(1)
    finally:
        print(f"compose: {passed} passed", flush=True)
